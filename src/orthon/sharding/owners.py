"""Whole matrices on the ranks that own them: the ways of shards to the owners, and of results back."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from orthon.sharding.layout import Layout
from orthon.sharding.line import Line
from orthon.sharding.spans import Span
from orthon.sharding.step import Step


class Owners:
    """Who owns each matrix of a batch, and the ways of its shards to the owner and back.

    There are four steps. Each leaves out what the layout does not need.

    1. `take`: of several copies, that of the owner is chosen. The gradients of replicas may be yet to be averaged: then
       each replica adds its own.
    2. `bring`: the ranks of that copy send their shards to the owner.
    3. `send_back`: the owner sends each of them its shard of the result.
    4. `send_to_copies`: they send it to the ranks that hold the same shard.

    A rank deals with three lists of matrices: all of them, those whose owners belong to its copy (`of_copy`), and those
    that it owns itself (`mine`).

    Args:
        layout: of the matrices.
        owners: of each matrix, as `deal` returns them.
        unsynced: whether the shards of the user's replicas are to be averaged on the way.
        rows: for each matrix which of its rows are sent, in ascending order, where that differs from rank to rank;
            None for all.
    """

    def __init__(
        self, layout: Layout, owners: Sequence[int], *, unsynced: bool, rows: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.layout, self._rows = layout, rows
        axes = layout.joint_axes
        # The place of each owner in the grid, by axis.
        self._places = [layout.grid.coordinates(owner, axes) for owner in owners]
        replicas = layout.replicated_axes
        self._averaged = tuple(a for a in replicas if unsynced and a in axes)
        self._copied = tuple(a for a in axes if a in (*layout.copied_axes, *replicas))
        # On the way to the owner, matrices become whole along one axis after the other, the last to cut first. A stage
        # (dim, k) does that along axis k of those that cut the dim.
        self._stages = [
            (dim, k) for dim in (0, 1) for k in reversed(range(len(layout.cuts[dim]))) if layout.cuts[dim][k] in axes
        ]
        # For each stage the spans of the dim that the ranks along its axis have just before.
        self._spans = {(dim, k): self._cut_by(dim, k + 1).spans(0, (layout.cuts[dim][k],)) for dim, k in self._stages}
        # For a dim that only the first k of its axes cut, the span that this rank has.
        self._span = {
            (dim, k): self._cut_by(dim, k).span(0) for dim in (0, 1) for k in range(len(layout.cuts[dim]) + 1)
        }
        selecting = [a for a in self._copied if a not in self._averaged]
        self._sending = self._with_mine(range(len(owners)), selecting)
        self.of_copy = self._with_mine(self._sending, self._averaged)
        self.mine = self._with_mine(self.of_copy, [layout.cuts[dim][k] for dim, k in self._stages])

    def take(self, shards: Sequence[Tensor]) -> Step[list[Tensor]]:
        """Return this rank's shards of the matrices `of_copy`, with the mean over replicas if these are to be averaged.

        Args:
            shards: this rank's shards of all matrices, (m', n').
        """
        chosen = [shards[j] for j in self._sending]
        if not self._averaged or not shards:
            return chosen
        ranks = self.layout.grid.along(self._averaged)
        dealt = self._dealt(self._sending, self._averaged)
        flat = [shards[j].reshape(-1) for js in dealt for j in js]
        sizes = [sum(shards[j].numel() for j in js) for js in dealt]
        whole = shards[0].new_empty(sum(sizes))
        if flat:
            whole = torch.cat(flat)
        mine = yield from ranks.scatter_sum(whole.view(1, -1, 1), sizes)
        return _split(mine.view(-1).div_(ranks.size), [shards[j].shape for j in self.of_copy])

    def bring(self, shards: Sequence[Tensor], like: Tensor) -> Step[list[Tensor]]:
        """Return the whole matrices that this rank owns: `mine`.

        Args:
            shards: this rank's shards of the matrices `of_copy`.
            like: any tensor with the dtype and the device of all of them.
        """
        held = dict(zip(self.of_copy, shards, strict=True))
        for dim, k in self._stages:
            line, dealt = self._stage(dim, k, held)
            mine = dealt[line.index]
            sizes = {j: self._sizes(j, dim, k) for j in mine}
            incoming = [[_shape(dim, sizes[j][i], held[j].shape[1 - dim]) for j in mine] for i in range(line.size)]
            pieces = yield from line.exchange([[held[j] for j in js] for js in dealt], incoming, like)
            held = {j: torch.cat([piece[place] for piece in pieces], dim) for place, j in enumerate(mine)}
        return list(held.values())

    def send_back(self, wholes: Sequence[Tensor], like: Tensor) -> Step[list[Tensor]]:
        """Return this rank's shards of the results for the matrices `of_copy`.

        Args:
            wholes: the whole results for the matrices that this rank owns, `mine`.
            like: any tensor with the dtype and the device of all of them.
        """
        before = [self.of_copy]
        for dim, k in self._stages:
            line, dealt = self._stage(dim, k, before[-1])
            before.append(dealt[line.index])
        held = dict(zip(self.mine, wholes, strict=True))
        for place, (dim, k) in reversed(list(enumerate(self._stages))):
            line, dealt = self._stage(dim, k, before[place])
            mine = dealt[line.index]  # in the order that the other ranks expect; `held` may have another
            split = [torch.split(held[j], self._sizes(j, dim, k), dim) for j in mine]
            incoming = [[self._shape_at(j, place) for j in js] for js in dealt]
            pieces = yield from line.exchange([[each[i] for each in split] for i in range(line.size)], incoming, like)
            held = {j: piece for js, own in zip(dealt, pieces, strict=True) for j, piece in zip(js, own, strict=True)}
        return [held[j] for j in self.of_copy]

    def send_to_copies(
        self, shards: Sequence[Tensor], shapes: Sequence[Sequence[int]], like: Tensor
    ) -> Step[list[Tensor]]:
        """Return this rank's shards of the results for all matrices, each from the copy of its owner.

        Args:
            shards: this rank's shards of the results for the matrices `of_copy`.
            shapes: of this rank's shards of all matrices.
            like: any tensor with the dtype and the device of all of them.
        """
        if not self._copied:
            return list(shards)
        dealt = self._dealt(range(len(self._places)), self._copied)
        sizes = [sum(prod(shapes[j]) for j in js) for js in dealt]
        flat = torch.cat([like.new_empty(0), *(shard.reshape(-1) for shard in shards)])
        whole = yield from self.layout.grid.along(self._copied).gather_flat(flat, sizes, list(map(len, dealt)))
        order = [j for js in dealt for j in js]
        found = dict(zip(order, _split(whole, [shapes[j] for j in order]), strict=True))
        return [found[j] for j in range(len(self._places))]

    def _shape_at(self, j: int, stages: int) -> tuple[int, int]:
        """Return the shape of what this rank has of matrix j after some of the stages."""
        done = set(self._stages[:stages])
        sizes = []
        for dim in (0, 1):
            left = [k for k in range(len(self.layout.cuts[dim])) if (dim, k) not in done]
            sizes.append(self._count(j, dim, self._span[dim, len(left)]))
        return sizes[0], sizes[1]

    def _sizes(self, j: int, dim: int, k: int) -> list[int]:
        """Return how many indices of matrix j each rank along the axis of a stage has before the stage."""
        return [self._count(j, dim, span) for span in self._spans[dim, k]]

    def _count(self, j: int, dim: int, span: Span) -> int:
        """Return how many indices of matrix j are sent of those in a span."""
        if dim == 1 or self._rows is None:
            return span.length
        return bisect_left(self._rows[j], span.stop) - bisect_left(self._rows[j], span.start)

    def _cut_by(self, dim: int, axes: int) -> Layout:
        """Return a layout of one dim alone, cut by the first of its axes."""
        extent = self.layout.extents[dim]
        return replace(self.layout, extents=(replace(extent, axes=extent.axes[:axes]),))

    def _stage(self, dim: int, k: int, held: Iterable[int]) -> tuple[Line, list[list[int]]]:
        """Return the ranks along the axis of a stage, and which matrices go to each."""
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


def _shape(dim: int, size: int, other: int) -> tuple[int, int]:
    return (size, other) if dim == 0 else (other, size)


def _split(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    pieces = torch.split(flat, [prod(shape) for shape in shapes]) if shapes else ()
    return [piece.view(*shape) for piece, shape in zip(pieces, shapes, strict=True)]
