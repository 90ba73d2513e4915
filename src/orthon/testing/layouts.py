"""The ways in which parameters lie on ranks, and which rows and columns of them a rank holds.

Where the parts are is computed with torch.chunk alone, as the definitions say: first chunk along one axis of the
mesh, then each piece along the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

Held = tuple[Tensor, Tensor]  # the indices of the rows and of the columns that a rank holds


@dataclass(frozen=True)
class MeshLayout:
    """How parameters lie on a mesh of ranks.

    Attributes:
        axes: names of the mesh's axes.
        meshes: shapes of the mesh by number of ranks.
        dims: for each axis the dimension of the parameter that it splits, 0 or 1, or None for copies.
        inner_first: the last axis splits first, as where FSDP2 shards what tensor parallelism has split.
        replicas: the axis of the replicas that the optimizer is told of.
        compressed: the replicas' gradients differ, and the optimizer takes their mean.
        transposed: the mesh numbers the ranks along its first axis first. (Ranks that descend along an axis are no
            layout: torch orders them by rank in a group and by their place elsewhere, so that its own
            distribute_tensor and full_tensor give wrong rows.)
        plain: parameters are plain tensors.
    """

    axes: tuple[str, ...]
    meshes: Mapping[int, tuple[int, ...]]
    dims: tuple[int | None, ...]
    inner_first: bool = False
    replicas: str | None = None
    compressed: bool = False
    transposed: bool = False
    plain: bool = False

    def ranks(self, world: int) -> Tensor:
        """Return the mesh, a tensor of ranks."""
        shape = self.meshes[world]
        if self.transposed:
            return torch.arange(world).reshape(shape[::-1]).T.contiguous()
        return torch.arange(world).reshape(shape)

    def placements(self, world: int) -> tuple[Placement, ...]:
        """Return how DTensors are placed along the axes of the mesh."""
        shape = self.meshes[world]
        placements: list[Placement] = []
        for axis, dim in enumerate(self.dims):
            if dim is None:
                placements.append(Replicate())
                continue
            split_before = 1  # in how many pieces later axes have split this dimension
            if self.inner_first:
                for later in range(axis + 1, len(shape)):
                    split_before *= shape[later] if self.dims[later] == dim else 1
            placements.append(_StridedShard(dim, split_factor=split_before) if split_before > 1 else Shard(dim))
        return tuple(placements)


def _line(*worlds: int) -> dict[int, tuple[int, ...]]:
    return {world: (world,) for world in worlds or (2, 4, 8)}


_PLANE = {4: (2, 2), 8: (2, 4)}
_STEEP_PLANE = {8: (4, 2)}
_CUBE = {8: (2, 2, 2)}

LAYOUTS: dict[str, MeshLayout] = {
    "unaware": MeshLayout(("dp",), _line(), (None,), plain=True),  # every rank computes all of it, alone
    "ddp": MeshLayout(("dp",), _line(), (None,), plain=True, replicas="dp"),
    "ddp compressed": MeshLayout(("dp",), _line(), (None,), plain=True, replicas="dp", compressed=True),
    "replicated": MeshLayout(("dp",), _line(), (None,)),
    "fsdp 0": MeshLayout(("dp",), _line(), (0,)),
    "fsdp 1": MeshLayout(("dp",), _line(), (1,)),
    "hsdp": MeshLayout(("replicate", "shard"), _PLANE, (None, 0)),
    "hsdp 4x2": MeshLayout(("replicate", "shard"), _STEEP_PLANE, (None, 0)),
    "hsdp compressed": MeshLayout(("replicate", "shard"), _PLANE, (None, 0), replicas="replicate", compressed=True),
    "hsdp 4x2 compressed": MeshLayout(
        ("replicate", "shard"), _STEEP_PLANE, (None, 0), replicas="replicate", compressed=True
    ),
    "tp column": MeshLayout(("tp",), _line(), (0,)),
    "tp row": MeshLayout(("tp",), _line(), (1,)),
    "fsdp x tp same dim": MeshLayout(("dp", "tp"), _PLANE, (0, 0), inner_first=True),
    "fsdp x tp same dim 4x2": MeshLayout(("dp", "tp"), _STEEP_PLANE, (0, 0), inner_first=True),
    "fsdp x tp same dim 1": MeshLayout(("dp", "tp"), _PLANE, (1, 1), inner_first=True),
    "fsdp x tp other dim": MeshLayout(("dp", "tp"), _PLANE, (0, 1), inner_first=True),
    "fsdp x tp other dim 4x2": MeshLayout(("dp", "tp"), _STEEP_PLANE, (0, 1), inner_first=True),
    "hsdp x tp same dim": MeshLayout(("replicate", "shard", "tp"), _CUBE, (None, 0, 0), inner_first=True),
    "hsdp x tp other dim": MeshLayout(("replicate", "shard", "tp"), _CUBE, (None, 0, 1), inner_first=True),
    "hsdp x tp compressed": MeshLayout(
        ("replicate", "shard", "tp"), _CUBE, (None, 0, 1), inner_first=True, replicas="replicate", compressed=True
    ),
    "columns x rows": MeshLayout(("a", "b"), _PLANE, (1, 0)),
    "rows of rows": MeshLayout(("a", "b"), _PLANE, (0, 0)),
    "rows x replicas": MeshLayout(("a", "b"), _PLANE, (0, None)),
    "rows of rows x columns": MeshLayout(("a", "b", "c"), _CUBE, (0, 1, 0)),
    "axis of size 1": MeshLayout(("a", "b"), {2: (1, 2), 4: (1, 4), 8: (1, 8)}, (1, 0)),
    "last axis of size 1": MeshLayout(("a", "b"), {2: (2, 1), 4: (4, 1), 8: (8, 1)}, (0, 0), inner_first=True),
    "transposed mesh": MeshLayout(("a", "b"), _PLANE, (0, 1), transposed=True),
    "transposed hsdp": MeshLayout(("replicate", "shard"), _PLANE, (None, 0), transposed=True),
}


def layouts_on(world: int) -> list[str]:
    """Return the names of the layouts that this number of ranks can have."""
    return [name for name, layout in LAYOUTS.items() if world in layout.meshes]


# Anywhere


def coordinates(layout: str, world: int) -> list[tuple[int, ...]]:
    """Return each rank's place in the mesh."""
    ranks = LAYOUTS[layout].ranks(world)
    places = list(product(*map(range, ranks.shape)))  # in the order of the mesh's entries
    return [places[ranks.flatten().tolist().index(rank)] for rank in range(world)]


def parts(layout: str, world: int, shape: tuple[int, ...]) -> list[Held]:
    """Return the rows and columns that each rank holds of a parameter of this shape.

    Columns are indices of its second dim; a vector has one column, and no layout with which a mesh splits that.
    """
    dims, sizes = LAYOUTS[layout].dims, LAYOUTS[layout].meshes[world]
    order = list(range(len(dims)))
    if LAYOUTS[layout].inner_first:
        order.reverse()
    result: list[Held] = []
    for place in coordinates(layout, world):
        held = [torch.arange(size) for size in (*shape, 1)[:2]]
        for axis in order:
            if (dim := dims[axis]) is not None:
                held[dim] = _piece(held[dim], sizes[axis], place[axis])
        result.append((held[0], held[1]))
    return result


def _piece(indices: Tensor, pieces: int, which: int) -> Tensor:
    """Return one of the pieces; torch.chunk makes fewer where there is too little, and the last ranks get none."""
    if len(indices) == 0:
        return indices  # torch.chunk would return as many empty ones as it is asked for, or one
    chunks = torch.chunk(indices, pieces)
    return chunks[which] if which < len(chunks) else indices[:0]


def replica(layout: str, world: int, rank: int) -> int:
    """Return which of the replicas, for the optimizer, a rank belongs to; 0 if the layout has none."""
    axis = LAYOUTS[layout].replicas
    return 0 if axis is None else coordinates(layout, world)[rank][LAYOUTS[layout].axes.index(axis)]


def replicas_of(layout: str, world: int) -> list[list[int]]:
    """Return the ranks in groups that hold the same part."""
    same: dict[tuple[int, ...], list[int]] = {}
    for rank, place in enumerate(coordinates(layout, world)):
        key = tuple(i for i, dim in zip(place, LAYOUTS[layout].dims, strict=True) if dim is not None)
        same.setdefault(key, []).append(rank)
    return list(same.values())


def number_of_replicas(layout: str, world: int) -> int:
    """Return how many replicas the optimizer is told of; 1 if the layout has none."""
    return 1 + max(replica(layout, world, rank) for rank in range(world))


def cut(full: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return these rows and columns of a parameter; of a vector, the rows."""
    return full[rows] if full.ndim == 1 else full[rows][:, cols]


# In a worker


@cache
def mesh(layout: str, world: int) -> DeviceMesh:
    """Return the mesh; the pool clears this cache when there is a new process group."""
    axes = LAYOUTS[layout].axes
    return DeviceMesh("cpu", LAYOUTS[layout].ranks(world), mesh_dim_names=axes)


def build(layout: str, world: int, full: Tensor) -> Tensor:
    """Return this rank's tensor, plain or a DTensor, for one that every rank has in full."""
    if LAYOUTS[layout].plain:
        return full.clone()
    local = cut(full, *parts(layout, world, tuple(full.shape))[dist.get_rank()])
    if LAYOUTS[layout].inner_first and not local.numel():
        # As FSDP2 does: where tensor parallelism left nothing, the dimension that FSDP2 splits is 0 as well.
        split = next(dim for dim in LAYOUTS[layout].dims if dim is not None)
        local = local.narrow(split, 0, 0)
    placements = LAYOUTS[layout].placements(world)
    return DTensor.from_local(
        local, mesh(layout, world), placements, run_check=False, shape=full.shape, stride=full.stride()
    )


def replica_group(layout: str, world: int) -> dist.ProcessGroup | None:
    """Return the replicas that the optimizer is told of, if any."""
    axis = LAYOUTS[layout].replicas
    return None if axis is None else mesh(layout, world).get_group(axis)


def local(x: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return x.to_local() if isinstance(x, DTensor) else x


Split = Callable[[Tensor, int, torch.Generator], list[Tensor]]


def noisy(full: Tensor, replicas: int, generator: torch.Generator) -> list[Tensor]:
    """Split a gradient into different ones of the replicas, whose mean it is."""
    noise = torch.randn(replicas, *full.shape, generator=generator, dtype=full.dtype)
    return list(full + full.abs().max() * (noise - noise.mean(0)))


def on_one_replica(full: Tensor, replicas: int, generator: torch.Generator) -> list[Tensor]:  # noqa: ARG001
    """Give the second replica all of a gradient, and zeros to the others."""
    return [replicas * full if k == 1 % replicas else torch.zeros_like(full) for k in range(replicas)]
