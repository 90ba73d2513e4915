"""The placements of a DTensor read as cuts of its dims, and cuts written as placements."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from orthon.sharding.dtensor import is_dtensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement


def cuts_of(param: "DTensor") -> tuple[tuple[int, ...], ...]:
    """Return for each dim of a parameter the mesh axes that cut it, in the order of cutting.

    Axes cut from left to right. A strided placement is an exception: its axis cuts after some of the later axes, and
    its split factor tells after how many. Axes of size 1 cut nothing.

    Raises:
        NotImplementedError: for a placement that is no cut of one dim.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    cuts: list[list[int]] = [[] for _ in range(param.ndim)]
    sizes = param.device_mesh.shape
    for axis in reversed(range(param.device_mesh.ndim)):
        placement = param.placements[axis]
        if isinstance(placement, Replicate) or (sizes[axis] == 1 and not placement.is_partial()):
            continue
        if not isinstance(placement, Shard | _StridedShard):
            raise NotImplementedError(
                f"its placement {placement} on mesh axis {axis} (all: {param.placements}) cannot be served; "
                "what can: Replicate() and Shard(dim), as fully_shard and parallelize_module make them"
            )
        order = cuts[placement.dim % param.ndim]
        factor = placement.split_factor if isinstance(placement, _StridedShard) else 1
        befores = [math.prod(sizes[later] for later in order[:place]) for place in range(len(order) + 1)]
        if factor not in befores:
            raise NotImplementedError(
                f"its placement {placement} on mesh axis {axis} (all: {param.placements}) cannot be served: the split "
                f"factor should be the size of the mesh axes that cut before it, one of {befores}"
            )
        order.insert(befores.index(int(factor)), axis)
    return tuple(map(tuple, cuts))


def placements_of(cuts: Mapping[int, Sequence[int]], sizes: Sequence[int]) -> "list[Placement]":
    """Return the placements that cut a tensor so.

    Args:
        cuts: for each dim that is cut the mesh axes that cut it, in the order of cutting.
        sizes: of the mesh axes.
    """
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    placements: list[Placement] = [Replicate() for _ in sizes]
    for dim, order in cuts.items():
        for place, axis in enumerate(order):
            # DTensor calls an axis strided that cuts after later axes of the mesh.
            later = math.prod(sizes[before] for before in order[:place] if before > axis)
            placements[axis] = Shard(dim) if later == 1 else _StridedShard(dim, split_factor=later)
    return placements


def check_placements(param: Tensor) -> None:
    """Raise a NotImplementedError for a parameter whose layout cannot be served, without asking other ranks."""
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise NotImplementedError(
            "is a flat parameter of FullyShardedDataParallel (FSDP1), which has no rows and columns; shard with "
            "FSDP2 instead: from torch.distributed.fsdp import fully_shard; fully_shard(model)"
        )
    if is_dtensor(param):
        cuts_of(param)
