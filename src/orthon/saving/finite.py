"""Whether the numbers of a saved state are finite."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from orthon.sharding import is_dtensor, local
from orthon.step.member import Member


def check_finite(states: Sequence[tuple[Member, Mapping[str, Tensor]]], where: str) -> None:
    """Raise a ValueError if a state has infinities or NaNs.

    Tensors that are divided over processes are looked at by all of these together, so that all raise it.

    Args:
        states: of parameters that are called as the members are.
        where: starts the message.
    """
    divided: dict[DeviceMesh, list[tuple[str, str, Tensor]]] = {}
    for member, state in states:
        for key, value in state.items():
            if is_dtensor(value) and not local(value).is_meta:
                divided.setdefault(value.device_mesh, []).append((member.name, key, local(value)))
            elif not value.is_meta and not value.isfinite().all():
                raise ValueError(_message(where, member.name, key))
    for mesh, entries in divided.items():
        bad = torch.stack([~part.isfinite().all() for *_, part in entries]).to(mesh.device_type, torch.int32)
        for dim in range(mesh.ndim):
            dist.all_reduce(bad, op=dist.ReduceOp.MAX, group=mesh.get_group(dim))
        for (name, key, _), is_bad in zip(entries, cast(list[int], bad.tolist()), strict=True):
            if is_bad:
                raise ValueError(_message(where, name, key))


def _message(where: str, name: str, key: str) -> str:
    return f"{where}: parameter {name!r}: {key!r} should have finite numbers, but has infinities or NaNs"
