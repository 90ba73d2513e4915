"""How one parameter lies on the ranks: which shard this rank holds, and who holds the others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from orthon.sharding.cuts import cuts_of, placements_of
from orthon.sharding.dtensor import dtensor, dtensor_spec, is_dtensor, local
from orthon.sharding.grid import Grid
from orthon.sharding.ranks import Ranks
from orthon.sharding.side import Side
from orthon.sharding.spans import Extent, Span

if TYPE_CHECKING:
    from torch.distributed.tensor import Placement
    from torch.distributed.tensor._dtensor_spec import DTensorSpec


@dataclass(frozen=True, eq=False)
class Layout:
    """How one parameter lies on the ranks, or each of the matrices that it is read as.

    Attributes:
        extents: of the dims of the parameter, or of the rows and the columns of each matrix.
        grid: the ranks.
        device: on which the parameter is.
        mesh: of the parameter and its state, if they are DTensors.
        placements: on that mesh.
        apart: the axes along which ranks have different matrices.
        unspread: a side of the matrices along which no state is spread over the ranks that cut the other side; None if
            a state may be spread along both.
    """

    extents: tuple[Extent, ...]
    grid: Grid
    device: torch.device
    mesh: DeviceMesh | None = None
    placements: "tuple[Placement, ...]" = ()
    apart: tuple[int, ...] = ()
    unspread: int | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter, or of one matrix."""
        return tuple(extent.length for extent in self.extents)

    @cached_property
    def cuts(self) -> tuple[tuple[int, ...], ...]:
        """For each dim the axes of the grid that cut it, in the order of cutting."""
        return tuple(extent.axes for extent in self.extents)

    @cached_property
    def transposed(self) -> "Layout":
        """The layout of the transposed matrices."""
        unspread = None if self.unspread is None else 1 - self.unspread
        extents = self.extents[::-1]
        return replace(self, extents=extents, mesh=None, placements=(), unspread=unspread)

    @cached_property
    def alone(self) -> "Layout":
        """The layout of the same matrices where one rank has the whole of each."""
        me = torch.tensor(int(self.grid.ranks[self.grid.coordinate]), device="cpu")
        return Layout(tuple(Extent(length) for length in self.shape), Grid(me, (), ()), self.device)

    def factor(self, dim: int, width: int) -> "Layout":
        """Return the layout of factors (size of a dim, width) that all axes that cut the matrices cut, along that dim.

        Args:
            dim: 0 for the rows, 1 for the columns.
            width: of the factors.
        """
        extent = replace(self.extents[dim], axes=self.cuts[dim] + self.cuts[1 - dim])
        return replace(self, extents=(extent, Extent(width)), mesh=None, placements=(), unspread=None)

    def __str__(self) -> str:
        sizes = [math.prod(self.grid.ranks.shape[axis] for axis in axes) for axes in self.cuts]
        sides = ("rows", "columns") if len(sizes) == 2 else tuple(f"dim {dim}" for dim in range(len(sizes)))
        cuts = [f"{side}/{size}" for side, size in zip(sides, sizes, strict=True) if size > 1]
        apart = math.prod(self.grid.ranks.shape[axis] for axis in self.apart)
        copies = self.copies(unsynced=False).size
        return ", ".join(
            [" × ".join(cuts) or "whole", *[f"matrices/{apart}"] * (apart > 1), *[f"{copies} copies"] * (copies > 1)]
        )

    # Which ranks

    @property
    def everyone(self) -> Ranks:
        """The ranks that hold any shard."""
        return self.grid.along(self.joint_axes)

    @property
    def joint_axes(self) -> tuple[int, ...]:
        """The axes along which ranks have the same matrices: other shards of them, or copies."""
        sizes = self.grid.ranks.shape
        return tuple(axis for axis in range(len(sizes)) if axis not in self.apart and sizes[axis] > 1)

    @property
    def copied_axes(self) -> tuple[int, ...]:
        """The axes along which every rank has the same shard, but for that of the user's replicas."""
        cut = {axis for axes in self.cuts for axis in axes} | set(self.apart)
        return tuple(a for a in range(self.grid.ranks.ndim) if a not in cut and a != self.grid.replicas)

    @property
    def replicated_axes(self) -> tuple[int, ...]:
        """The axis of the user's replicas, if there is one."""
        return () if self.grid.replicas is None else (self.grid.replicas,)

    @property
    def replicas(self) -> Ranks:
        """The user's replicas of this rank's shard."""
        return self.grid.along(self.replicated_axes)

    def copies(self, *, unsynced: bool) -> Ranks:
        """Return the ranks that hold this rank's shard and should have the same gradient.

        Args:
            unsynced: whether the gradients of the user's replicas differ, so that these are no copies.
        """
        return self.grid.along(self.copied_axes + (() if unsynced else self.replicated_axes))

    # Which indices

    def span(self, dim: int, *, also: Sequence[int] = ()) -> Span:
        """Return the indices of a dim that this rank holds.

        Args:
            dim: of the parameter or the matrix.
            also: more axes that cut the dim, after its own.
        """
        return self._span_at(dim, also, {})

    def spans(self, dim: int, along: Sequence[int], *, also: Sequence[int] = ()) -> list[Span]:
        """Return the indices of a dim that other ranks hold.

        Args:
            dim: of the parameter or the matrix.
            along: in these axes alone the places of the other ranks differ from this one's; the first axis slowest.
            also: more axes that cut the dim, after its own.
        """
        extent = self.extents[dim]
        axes = (*extent.axes, *also)
        if [axis for axis in axes if axis in along] != list(along):  # they cut in another order, or do not cut it
            places = product(*(range(self.grid.ranks.shape[axis]) for axis in along))
            return [self._span_at(dim, also, dict(zip(along, place, strict=True))) for place in places]
        spans = [Span(0, extent.size)]
        for axis in axes:
            count, own = self.grid.ranks.shape[axis], self.grid.coordinate[axis]
            if axis in along:
                spans = [chunk for span in spans for chunk in span.chunks(count)]
            else:
                spans = [span.chunk(count, own) for span in spans]
        return list(map(extent.held, spans))

    def _span_at(self, dim: int, also: Sequence[int], at: Mapping[int, int]) -> Span:
        """Return the indices of a dim that a rank holds. Its coordinates are this rank's, but for those in `at`."""
        extent = self.extents[dim]
        span = Span(0, extent.size)
        for axis in (*extent.axes, *also):
            span = span.chunk(self.grid.ranks.shape[axis], at.get(axis, self.grid.coordinate[axis]))
        return extent.held(span)

    @cached_property
    def shard_shape(self) -> tuple[int, ...]:
        """The shape of this rank's shard."""
        return tuple(self.span(dim).length for dim in range(len(self.extents)))

    @cached_property
    def largest_shard(self) -> tuple[int, ...]:
        """For each dim the most indices that any rank holds."""
        return tuple(map(max, self._lengths))

    def shard_at(self, place: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the shard of a rank at a place of the grid."""
        shape, sizes = [], self.grid.ranks.shape
        for axes, lengths in zip(self.cuts, self._lengths, strict=True):
            index = 0
            for axis in axes:
                index = index * sizes[axis] + place[axis]
            shape.append(lengths[index])
        return tuple(shape)

    @cached_property
    def _lengths(self) -> list[list[int]]:
        """For each dim how many indices the ranks along the axes that cut it hold."""
        return [[span.length for span in self.spans(dim, axes)] for dim, axes in enumerate(self.cuts)]

    # The sides of matrices

    def side(self, dim: int, *, divide: bool, unsynced: bool) -> Side:
        """Return one side of the matrices, along which tall factors lie.

        Args:
            dim: 0 for the rows, 1 for the columns.
            divide: whether ranks that would compute the same divide it among them.
            unsynced: whether the gradients of the user's replicas differ.
        """
        key = (dim, divide, unsynced)
        if key not in self._sides:
            self._sides[key] = self._make_side(dim, divide, unsynced)
        return self._sides[key]

    @cached_property
    def _sides(self) -> dict[tuple[int, bool, bool], Side]:
        """The sides that have been asked for. No field, so that `dataclasses.replace` does not copy it."""
        return {}

    def _make_side(self, dim: int, divide: bool, unsynced: bool) -> Side:
        replicas = self.replicated_axes
        copies = self.copied_axes if unsynced else self.copied_axes + replicas
        summing = self.cuts[1 - dim] + (replicas if unsynced else ())
        dividing = copies if divide else ()
        spreading = () if dim == self.unspread else self.cuts[1 - dim]
        other = self.extents[1 - dim]
        whole = replace(self, extents=(replace(other, window=None),))  # with all blocks
        opposite = max(1.0, whole.largest_shard[0] * other.length / whole.shape[0])
        return Side(
            size=self.span(dim).length,
            copies=self.grid.along(dividing),
            summands=self.grid.along(summing),
            holders=self.grid.along(dividing + summing),
            ranks=self.grid.along(self.cuts[dim] + dividing + summing),
            averaged=self.grid.along(replicas if unsynced else ()).size,
            others=self.grid.along(spreading),
            kept_sizes=[span.length for span in self.spans(dim, spreading, also=spreading)],
            opposite=opposite,
        )

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What others have found out about this layout. No field, as with `_sides`."""
        return {}

    # Tensors that lie so

    def fit(self, shard: Tensor) -> Tensor:
        """Return this rank's shard in the shape that it should have, which an empty one may have lost."""
        return shard if shard.numel() else shard.view(self.shard_shape)

    def zeros_like(self, param: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return zeros that lie as a parameter of this layout does, in its own dtype or another."""
        zeros = torch.zeros_like(self.fit(local(param)), dtype=dtype, memory_format=torch.preserve_format)
        return zeros if self.mesh is None else self._wrapped(zeros)

    def _wrapped(self, shard: Tensor) -> Tensor:
        """Return the DTensor of this layout of which this rank holds `shard`."""
        assert self.mesh is not None
        if shard.dtype not in self._specs:
            self._specs[shard.dtype] = dtensor_spec(shard.dtype, self.mesh, self.placements, self.shape)
        return dtensor(shard, self._specs[shard.dtype])

    @cached_property
    def _specs(self) -> "dict[torch.dtype, DTensorSpec]":
        """What torch keeps of the DTensors of this layout, by their dtype. No field, as with `_sides`."""
        return {}

    def placed(self, shard: Tensor, shape: Sequence[int], cuts: Mapping[int, Sequence[int]]) -> Tensor:
        """Return a state of another shape, as a DTensor if the parameter is one.

        Args:
            shard: this rank's shard of the state.
            shape: of the whole state.
            cuts: for each dim of it that is cut the axes that cut it, in the order of cutting.
        """
        if self.mesh is None:
            return shard
        placements = placements_of(cuts, tuple(self.grid.ranks.shape)[: len(self.placements)])
        return dtensor(shard, dtensor_spec(shard.dtype, self.mesh, placements, shape))


def make_layout(param: Tensor, grid: Grid) -> Layout:
    """Return the layout of a parameter on the grid of its mesh.

    Raises:
        ValueError: for replicas that hold different shards.
        NotImplementedError: for a placement that cannot be served, or a local shard that does not fit it.
    """
    if not is_dtensor(param):
        return Layout(tuple(map(Extent, param.shape)), grid, param.device)
    extents = tuple(map(Extent, param.shape, cuts_of(param)))
    layout = Layout(extents, grid, param.device, param.device_mesh, param.placements)
    if any(grid.replicas in axes for axes in layout.cuts):
        raise ValueError(
            f"replicas should be ranks with copies of it, but its placements {param.placements} cut it over them"
        )
    expected = list(layout.shard_shape)
    actual = list(param.to_local().shape)
    if actual != expected and (param.to_local().numel() or 0 not in expected):
        raise NotImplementedError(
            f"its local shape {actual} is not the {expected} that follows from {param.placements} on a mesh of shape "
            f"{tuple(param.device_mesh.shape)} for {tuple(param.shape)}"
        )
    return layout
