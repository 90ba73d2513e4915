"""Ranks in a grid: along the axes of a device mesh, and along an axis of replicas that the mesh does not have."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from orthon.sharding.line import Line
from orthon.sharding.ranks import Ranks


@dataclass(frozen=True, eq=False)
class Grid:
    """Ranks in a grid. Axis i of a device mesh is axis i of the grid.

    Attributes:
        ranks: global ranks, int64, one dim for each axis.
        coordinate: the place of this rank.
        groups: for each axis the process group of the ranks along it through this one; None for an axis of size 1.
        replicas: the axis of the replicas, if the user named any: ranks that train on other data.
    """

    ranks: Tensor
    coordinate: tuple[int, ...]
    groups: tuple[dist.ProcessGroup | None, ...]
    replicas: int | None = None

    def along(self, axes: Sequence[int]) -> Ranks:
        """Return the ranks whose places differ from this one's in these axes alone, the first axis slowest."""
        axes = tuple(axis for axis in axes if self.ranks.shape[axis] > 1)
        if axes not in self._made:
            self._made[axes] = self._make(axes)
        return self._made[axes]

    def coordinates(self, index: int, axes: Sequence[int]) -> dict[int, int]:
        """Return for each of some axes the coordinate of a rank.

        Args:
            index: the place of the rank in `along(axes)`.
            axes: those axes.
        """
        place = {}
        for axis in reversed(axes):
            index, place[axis] = divmod(index, self.ranks.shape[axis])
        return place

    @cached_property
    def _made(self) -> dict[tuple[int, ...], Ranks]:
        """The ranks that have been asked for, by axes. No field, so that `dataclasses.replace` does not copy it."""
        return {}

    def _make(self, axes: tuple[int, ...]) -> Ranks:
        me = int(self.ranks[self.coordinate])
        ranks = self._through(axes)
        if len(axes) > 1 and len(ranks) == dist.get_world_size():
            # They are all ranks that there are, and these have one process group.
            return Ranks(ranks, [Line(ranks, me, cast(dist.ProcessGroup, dist.group.WORLD))])
        lines = []
        for axis in axes:
            group = self.groups[axis]
            assert group is not None
            lines.append(Line(self._through((axis,)), me, group))
        return Ranks(ranks, lines)

    def _through(self, axes: tuple[int, ...]) -> list[int]:
        """Return the global ranks of `along(axes)`."""
        free = self.ranks[tuple(slice(None) if i in axes else c for i, c in enumerate(self.coordinate))]
        ranks: list[int] = free.permute([sorted(axes).index(axis) for axis in axes]).flatten().tolist()
        return ranks


def make_grid(mesh: DeviceMesh | None, replicas: dist.ProcessGroup | None) -> Grid:
    """Return the grid of a mesh and of the replicas that the user names.

    All ranks that hold a shard must call it in the same order. Replicas that are no axis of the mesh become the last
    axis of the grid. If they have meshes, they tell each other the ranks of these.

    Args:
        mesh: None for plain parameters.
        replicas: None if the user names none.

    Raises:
        ValueError: for replicas that have ranks in common with the mesh and are none of its axes.
    """
    if mesh is None:
        # A process that belongs to no group is alone.
        me = dist.get_rank() if dist.is_initialized() else 0
        grid = Grid(torch.tensor(me, device="cpu"), (), ())
    else:
        coordinate = mesh.get_coordinate()
        assert coordinate is not None, "the optimizer leaves out parameters of which this rank holds no shard"
        groups = tuple(mesh.get_group(axis) if mesh.size(axis) > 1 else None for axis in range(mesh.ndim))
        grid = Grid(mesh.mesh.cpu(), tuple(coordinate), groups)
    if replicas is None:
        return grid
    named = dist.get_process_group_ranks(replicas)
    for axis in range(grid.ranks.ndim):
        if set(grid.along([axis]).ranks) == set(named) and grid.ranks.shape[axis] > 1:
            return Grid(grid.ranks, grid.coordinate, grid.groups, axis)
    if len(named) == 1:
        return grid
    shared = set(grid.ranks.flatten().tolist()) & set(named)
    if len(shared) > 1:
        raise ValueError(
            f"replicas should be an axis of the parameters' mesh, or ranks outside of it, but {sorted(named)} "
            f"has ranks {sorted(shared)} in common with the mesh {mesh}"
        )
    place = dist.get_rank(replicas)
    grids: list[list[int] | int] = [*named]
    if mesh is not None:
        dist.all_gather_object(grids, grid.ranks.tolist(), group=replicas)
    # The last axis, so that the axes of the mesh keep their numbers.
    ranks = torch.stack([torch.tensor(each, device="cpu") for each in grids], dim=-1)
    return Grid(ranks, (*grid.coordinate, place), (*grid.groups, replicas), ranks.ndim - 1)
