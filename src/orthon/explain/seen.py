"""The parameters of a step as any of the ranks has them, on a device that need not be here: without storage."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orthon.explain.places import grid_at
from orthon.sharding import Layout, Matrices, local, on_meta, relocated
from orthon.sharding.grid import Grid
from orthon.step.member import Member


def members_seen(members: Sequence[Member], *, rank: int | None, device: torch.device | None) -> list[Member]:
    """Return parameters as a rank has them, with gradients, and without any storage.

    A layout says which shard every rank holds. So all that another rank would do follows from the layouts of this one,
    with the other rank's place in their grids: its shards, its plan, and in a dry run its messages, to the byte.

    Args:
        members: of this rank.
        rank: which rank; None for this one. Parameters of which it has no shard are left out.
        device: on which they shall be taken to be; None for where they are.
    """
    return list(_Eyes(rank, device).see(members))


class _Eyes:
    """What lies alike has one layout, also as it is seen from elsewhere: batches depend on that."""

    def __init__(self, rank: int | None, device: torch.device | None) -> None:
        self._rank, self._device = rank, device
        self._grids: dict[int, Grid | None] = {}
        self._layouts: dict[int, Layout | None] = {}
        self._matrices: dict[int, Matrices] = {}
        self._groups: dict[int, dict[str, Any]] = {}

    def see(self, members: Sequence[Member]) -> Iterator[Member]:
        for member in members:
            if id(member.layout) not in self._layouts:
                self._layouts[id(member.layout)] = self._layout(member.layout)
            layout = self._layouts[id(member.layout)]
            if layout is None:
                continue
            matrices = member.matrices
            if matrices is not None and layout is not member.layout:
                if id(matrices) not in self._matrices:
                    self._matrices[id(matrices)] = Matrices(layout, matrices.reading)
                matrices = self._matrices[id(matrices)]
            if id(member.group) not in self._groups:
                self._groups[id(member.group)] = _group(member.group, self._device)
            param = _param(member, layout)
            grad = torch.empty_like(local(param))
            group = self._groups[id(member.group)]
            yield replace(member, param=param, grad=grad, group=group, layout=layout, matrices=matrices)

    def _layout(self, layout: Layout) -> Layout | None:
        if self._rank is None and self._device is None:
            return layout
        if id(layout.grid) not in self._grids:
            self._grids[id(layout.grid)] = layout.grid if self._rank is None else grid_at(layout, self._rank)
        grid = self._grids[id(layout.grid)]
        return None if grid is None else replace(layout, grid=grid, device=self._device or layout.device)


def _param(member: Member, layout: Layout) -> Tensor:
    param = on_meta(member.param)
    shard = local(param)
    if layout is member.layout or shard.shape == layout.shard_shape:
        return param
    strides: tuple[int, ...] = shard.stride()
    order = sorted(range(shard.ndim), key=lambda dim: -strides[dim])  # of the dims in memory
    return relocated(param, torch.empty_permuted(layout.shard_shape, order, dtype=param.dtype, device="meta"))


def _group(group: dict[str, Any], device: torch.device | None) -> dict[str, Any]:
    """Return a param group for parameters on meta."""
    # Rates may be tensors on an accelerator, which do not mix with tensors on meta. Their values change nothing here.
    rates = {"lr": 0.0, "weight_decay": 0.0}
    if "foreach" not in group or group["foreach"] is not None or group["fused"]:
        return {**group, **rates}
    # torch chooses `foreach` by the device, and it costs memory: choose as torch would for the true device.
    kind = (device or local(group["params"][0]).device).type
    return {**group, **rates, "foreach": kind != "cpu" and not isinstance(group["lr"], Tensor)}
