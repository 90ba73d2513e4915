"""Whole matrices on ranks that hold parts of them: who computes on which, and the ways there and back."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from math import prod

import torch
from torch import Tensor

from orthon.sharding.layout import Layout
from orthon.sharding.ranks import Line
from orthon.sharding.step import Step


@dataclass(frozen=True)
class Share:
    """What there is to deal out of one batch.

    Attributes:
        layout: of the matrices.
        count: how many there are.
        cost: of the work on one of them.
        is_joint: whether all ranks of a copy work together on a matrix.
    """

    layout: Layout
    count: int
    cost: float
    is_joint: bool


def deal(work: Sequence[Share]) -> list[list[int]]:
    """Return for each matrix which of the ranks that hold parts of it, `layout.everyone`, owns it in this step.

    The longest work is dealt out first, each to the rank with the least so far (Graham, "Bounds on multiprocessing
    timing anomalies", SIAM J. Appl. Math. 17, 1969), or to the copy whose busiest rank has the least, of which then
    any rank stands for all. Only what the same ranks hold is weighed together, so that all of them come to the same
    result.
    """
    loads: dict[tuple[int, ...], list[float]] = {}
    owners: list[list[int]] = [[] for _ in work]
    for i in sorted(range(len(work)), key=lambda i: -work[i].cost):
        share = work[i]
        ranks = share.layout.everyone
        load = loads.setdefault(ranks.ranks, [0.0] * ranks.size)
        teams = _copies(share.layout) if share.is_joint else [[rank] for rank in range(ranks.size)]
        heap = [(max(load[rank] for rank in team), place) for place, team in enumerate(teams)]
        heapify(heap)
        for _ in range(share.count):
            most, place = heap[0]
            heapreplace(heap, (most + share.cost / len(teams[place]), place))
            owners[i].append(teams[place][0])
            for rank in teams[place]:
                load[rank] += share.cost / len(teams[place])
    return owners


def _copies(layout: Layout) -> list[list[int]]:
    """Return the ranks of each copy of the matrices, as indices among `layout.everyone`."""
    shape, axes = layout.grid.ranks.shape, _axes(layout)
    cut = {axis for cuts in layout.cuts for axis in cuts}
    copies: dict[tuple[int, ...], list[int]] = {}
    for index in range(layout.everyone.size):
        place = _coordinates(index, axes, shape)
        copies.setdefault(tuple(place[axis] for axis in axes if axis not in cut), []).append(index)
    return list(copies.values())


def _axes(layout: Layout) -> list[int]:
    """Return the axes along which ranks hold parts of the same matrices."""
    shape = layout.grid.ranks.shape
    return [axis for axis in range(len(shape)) if axis not in layout.apart and shape[axis] > 1]


class Owners:
    """Who owns which matrix of a batch, for the way of its parts to the owner, and of what it computes back.

    Of copies, only the one to which the owner belongs sends parts; where the gradients of replicas are yet to be
    averaged, each adds its own. The result goes to all of them.

    Args:
        layout: of the matrices.
        owners: of each matrix, as `deal` returns them.
        unsynced: whether the parts of the user's replicas are to be averaged on the way.
        rows: for each matrix which of its rows are sent, in ascending order, where that differs from rank to rank;
            None for all.
    """

    def __init__(
        self, layout: Layout, owners: Sequence[int], *, unsynced: bool, rows: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.layout, self._rows = layout, rows
        grid = layout.grid
        axes = _axes(layout)
        self._places = [_coordinates(owner, axes, grid.ranks.shape) for owner in owners]
        replicas = () if grid.replicas is None else (grid.replicas,)
        self._averaged = tuple(a for a in replicas if unsynced and a in axes)
        self._copies = tuple(a for a in axes if a in (*layout.copies, *replicas))
        self._stages = [
            (dim, k) for dim in (0, 1) for k in reversed(range(len(layout.cuts[dim]))) if layout.cuts[dim][k] in axes
        ]
        # For each dim the ranges that it falls into when the first of its axes cut it, and which is this rank's.
        self._ranges = {(dim, k): self._cut_by(dim, k + 1).parts(0, (layout.cuts[dim][k],)) for dim, k in self._stages}
        self._range = {
            (dim, k): self._cut_by(dim, k).part(0) for dim in (0, 1) for k in range(len(layout.cuts[dim]) + 1)
        }
        selecting = [a for a in self._copies if a not in self._averaged]
        self._sending = self._with_mine(range(len(owners)), selecting)
        self.of_copies = self._with_mine(self._sending, self._averaged)
        self.mine = self._with_mine(self.of_copies, [layout.cuts[dim][k] for dim, k in self._stages])

    def take(self, parts: Sequence[Tensor]) -> Step[list[Tensor]]:
        """Return of the parts (m', n') of all matrices those whose owners are along with this copy: `of_copies`."""
        chosen = [parts[j] for j in self._sending]
        if not self._averaged or not parts:
            return chosen
        ranks = self.layout.grid.along(self._averaged)
        dealt = self._dealt(self._sending, self._averaged)
        flat = [parts[j].reshape(-1) for js in dealt for j in js]
        sizes = [sum(parts[j].numel() for j in js) for js in dealt]
        whole = parts[0].new_empty(sum(sizes))
        if flat:
            whole = torch.cat(flat)
        share = yield from ranks.scatter_sum(whole.view(1, -1, 1), sizes)
        return _split(share.view(-1).div_(ranks.size), [parts[j].shape for j in self.of_copies])

    def share(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]], like: Tensor) -> Step[list[Tensor]]:
        """Return the parts of all matrices, of which each copy has those of its `of_copies`.

        Args:
            parts: of this copy's.
            shapes: of the parts of all.
            like: any tensor of the dtype and on the device of all of them.
        """
        if not self._copies:
            return list(parts)
        dealt = self._dealt(range(len(self._places)), self._copies)
        sizes = [sum(prod(shapes[j]) for j in js) for js in dealt]
        flat = torch.cat([like.new_empty(0), *(part.reshape(-1) for part in parts)])
        whole = yield from self.layout.grid.along(self._copies).gather_flat(flat, sizes, list(map(len, dealt)))
        order = [j for js in dealt for j in js]
        found = dict(zip(order, _split(whole, [shapes[j] for j in order]), strict=True))
        return [found[j] for j in range(len(self._places))]

    def bring(self, parts: Sequence[Tensor], like: Tensor) -> Step[list[Tensor]]:
        """Return the whole matrices that this rank owns, `mine`, of the parts of those of this copy, `of_copies`."""
        held = dict(zip(self.of_copies, parts, strict=True))
        for dim, k in self._stages:
            line, dealt = self._stage(dim, k, held)
            mine = dealt[line.index]
            sizes = {j: self._sizes(j, dim, k) for j in mine}
            incoming = [[_shape(dim, sizes[j][i], held[j].shape[1 - dim]) for j in mine] for i in range(line.size)]
            pieces = yield from line.exchange([[held[j] for j in js] for js in dealt], incoming, like)
            held = {j: torch.cat([piece[place] for piece in pieces], dim) for place, j in enumerate(mine)}
        return list(held.values())

    def send_back(self, wholes: Sequence[Tensor], like: Tensor) -> Step[list[Tensor]]:
        """Return the parts of the matrices of this copy, `of_copies`, of the whole ones of their owners."""
        before = [self.of_copies]
        for dim, k in self._stages:
            line, dealt = self._stage(dim, k, before[-1])
            before.append(dealt[line.index])
        held = dict(zip(self.mine, wholes, strict=True))
        for place, (dim, k) in reversed(list(enumerate(self._stages))):
            line, dealt = self._stage(dim, k, before[place])
            mine = dealt[line.index]  # in the order in which the others expect their parts; `held` may have another
            split = [torch.split(held[j], self._sizes(j, dim, k), dim) for j in mine]
            incoming = [[self._shape_at(j, place) for j in js] for js in dealt]
            pieces = yield from line.exchange([[each[i] for each in split] for i in range(line.size)], incoming, like)
            held = {j: piece for js, own in zip(dealt, pieces, strict=True) for j, piece in zip(js, own, strict=True)}
        return [held[j] for j in self.of_copies]

    def shape(self, j: int) -> tuple[int, int]:
        """Return the shape of this rank's part of a matrix, or of the rows of it that are sent."""
        return self._shape_at(j, 0)

    def _shape_at(self, j: int, stages: int) -> tuple[int, int]:
        """Return the shape of this rank's part of a matrix after some of the stages."""
        done = set(self._stages[:stages])
        sizes = []
        for dim in (0, 1):
            left = [k for k in range(len(self.layout.cuts[dim])) if (dim, k) not in done]
            sizes.append(self._count(j, dim, self._range[dim, len(left)]))
        return sizes[0], sizes[1]

    def _sizes(self, j: int, dim: int, k: int) -> list[int]:
        """Return how many indices of a matrix each rank along an axis has, after the axes that cut later."""
        return [self._count(j, dim, part) for part in self._ranges[dim, k]]

    def _count(self, j: int, dim: int, part: tuple[int, int]) -> int:
        if dim == 1 or self._rows is None:
            return part[1] - part[0]
        return bisect_left(self._rows[j], part[1]) - bisect_left(self._rows[j], part[0])

    def _cut_by(self, dim: int, axes: int) -> Layout:
        extent = self.layout.extents[dim]
        return replace(self.layout, extents=(replace(extent, axes=extent.axes[:axes]),))

    def _stage(self, dim: int, k: int, held: Iterable[int]) -> tuple[Line, list[list[int]]]:
        """Return the ranks along an axis, and which matrices go to each."""
        axis = self.layout.cuts[dim][k]
        (line,) = self.layout.grid.along((axis,)).lines
        return line, self._dealt(held, (axis,))

    def _dealt(self, held: Iterable[int], axes: Sequence[int]) -> list[list[int]]:
        """Return the matrices by where their owners are along some axes, the first axis slowest."""
        sizes = [self.layout.grid.ranks.shape[axis] for axis in axes]
        dealt: list[list[int]] = [[] for _ in range(prod(sizes))]
        for j in held:
            index = 0
            for axis, size in zip(axes, sizes, strict=True):
                index = index * size + self._places[j][axis]
            dealt[index].append(j)
        return dealt

    def _with_mine(self, held: Iterable[int], axes: Iterable[int]) -> list[int]:
        """Return the matrices whose owners are where this rank is along some axes."""
        here = {axis: self.layout.grid.coordinate[axis] for axis in axes}
        return [j for j in held if all(self._places[j][axis] == place for axis, place in here.items())]


def _coordinates(index: int, axes: Sequence[int], shape: Sequence[int]) -> dict[int, int]:
    """Return where the rank of this index is along the axes, of which the first is slowest."""
    place = {}
    for axis in reversed(axes):
        index, place[axis] = divmod(index, shape[axis])
    return place


def _shape(dim: int, size: int, other: int) -> tuple[int, int]:
    return (size, other) if dim == 0 else (other, size)


def _split(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    pieces = torch.split(flat, [prod(shape) for shape in shapes]) if shapes else ()
    return [piece.view(*shape) for piece, shape in zip(pieces, shapes, strict=True)]
