"""DTensors and plain tensors alike: this rank's shard, and tensors made of one.

Nothing here imports torch.distributed.tensor before there is a DTensor. That import takes longer than the rest of
Orthon, as it brings SymPy along. Whoever makes a DTensor has imported it.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement
    from torch.distributed.tensor._dtensor_spec import DTensorSpec
    from typing_extensions import TypeIs


def is_dtensor(x: object) -> "TypeIs[DTensor]":
    """Return whether `x` is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, getattr(module, "DTensor", ()))


def takes_part(x: Tensor) -> bool:
    """Return whether this rank belongs to the mesh of `x`. Plain tensors have none, and every rank belongs to them."""
    return not is_dtensor(x) or x.device_mesh.get_coordinate() is not None


def local(x: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, over the same storage. Not differentiable, unlike `to_local`."""
    return x._local_tensor if is_dtensor(x) else x


def relocated(x: Tensor, shard: Tensor) -> Tensor:
    """Return a tensor like `x` of which this rank holds `shard`."""
    if not is_dtensor(x):
        return shard
    return dtensor(shard, dtensor_spec(shard.dtype, x.device_mesh, x.placements, x.shape))


def on_meta(x: Tensor) -> Tensor:
    """Return a tensor like `x`, without storage."""
    return relocated(x.detach(), local(x.detach()).to("meta"))


def dtensor(shard: Tensor, spec: "DTensorSpec") -> "DTensor":
    """Return the DTensor of which this rank holds `shard`."""
    from torch.distributed.tensor import DTensor

    # Not from_local, which would move what is offloaded to the CPU to the device of the mesh.
    return DTensor(shard, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def dtensor_spec(
    dtype: torch.dtype, mesh: DeviceMesh, placements: "Sequence[Placement]", shape: Sequence[int]
) -> "DTensorSpec":
    """Return what torch keeps of a DTensor beside its shard. The whole tensor is contiguous."""
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    shape = torch.Size(shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensorSpec(mesh, tuple(placements), tensor_meta=TensorMeta(shape, stride, dtype))
