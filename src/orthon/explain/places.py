"""Where other ranks are in their grids, as far as this rank's meshes tell."""

from itertools import product

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from orthon.sharding import Layout
from orthon.sharding.grid import Grid


def places_of(layout: Layout) -> dict[int, tuple[int, ...]]:
    """Return the place of each rank in the grid of a layout.

    Where the mesh of the parameter is a part of a larger mesh, such as its axis of shards beside an axis of tensor
    parallelism, the other ranks of that are in grids of their own that are alike. Their places are told as well.
    """
    grid = layout.grid
    axes = _axes_in_root(layout.mesh, grid)
    whole = grid.ranks if axes is None else _root(layout.mesh)
    own = range(grid.ranks.ndim) if axes is None else axes
    everywhere = product(*map(range, whole.shape))
    return {
        rank: tuple(place[axis] for axis in own)
        for rank, place in zip(whole.flatten().tolist(), everywhere, strict=True)
    }


def grid_at(layout: Layout, rank: int) -> Grid | None:
    """Return the grid of a parameter as another rank has it, or None if that has no shard of it.

    The process groups are those of this rank. They are never used.
    """
    grid = layout.grid
    if grid.ranks.ndim == 0:  # every process has the whole parameter for itself
        return Grid(torch.tensor(rank, device="cpu"), (), ())
    ranks = grid.ranks
    axes = _axes_in_root(layout.mesh, grid)
    if axes is not None:
        whole = _root(layout.mesh)
        found = (whole == rank).nonzero().tolist()
        if found:
            index = tuple(slice(None) if axis in axes else found[0][axis] for axis in range(whole.ndim))
            ranks = whole[index].permute([sorted(axes).index(axis) for axis in axes])
    place = (ranks == rank).nonzero().tolist()
    return Grid(ranks, tuple(place[0]), grid.groups, grid.replicas) if place else None


def _root(mesh: DeviceMesh | None) -> Tensor:
    assert mesh is not None
    ranks: Tensor = mesh._get_root_mesh().mesh
    return ranks


def _axes_in_root(mesh: DeviceMesh | None, grid: Grid) -> list[int] | None:
    """Return which axes of the mesh from which a grid's mesh is cut are its axes; None if it is cut from none."""
    if mesh is None or mesh.ndim != grid.ranks.ndim or mesh.mesh_dim_names is None:
        return None
    root = mesh._get_root_mesh()
    names = root.mesh_dim_names
    if root is mesh or names is None or not set(mesh.mesh_dim_names) <= set(names):
        return None
    return [names.index(name) for name in mesh.mesh_dim_names]
