"""Whole matrices on the ranks that own them: the ways of shards to the owners, and of results back."""

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from orthon.sharding import ragged
from orthon.sharding.hops import Hop, hops
from orthon.sharding.layout import Layout
from orthon.sharding.requests import Delivery
from orthon.sharding.step import Step

# Matrices (b, m, n), or where only some rows of each are sent a list of these (k, n).
Shards = Tensor | list[Tensor]


class Owners:
    """Who owns each matrix of a batch, and the ways of its shards to the owner and back.

    There are four steps. Each leaves out what the layout does not need.

    1. `take`: of several copies, that of the owner is chosen. The gradients of replicas may be yet to be averaged: then
       each replica adds its own.
    2. `bring`: the ranks of that copy send their shards to the owner.
    3. `send_back`: the owner sends each of them its shard of the result.
    4. `send_to_copies`: they send it to the ranks that hold the same shard.

    A rank deals with three lists of matrices: all of them, those whose owners belong to its copy (`of_copy`), and those
    that it owns itself (`mine`). What it sends in a step is found out once, as a batch keeps its owners.

    Args:
        layout: of the matrices.
        owners: of each matrix, an index in `layout.everyone.ranks`.
        unsynced: whether the shards of the user's replicas are to be averaged on the way.
    """

    def __init__(self, layout: Layout, owners: Sequence[int], *, unsynced: bool) -> None:
        self.layout = layout
        axes, replicas = layout.joint_axes, layout.replicated_axes
        # The place of each owner in the grid, by axis.
        self._places = [layout.grid.coordinates(owner, axes) for owner in owners]
        self._averaged = tuple(a for a in replicas if unsynced and a in axes)
        self._copied = tuple(a for a in axes if a in (*layout.copied_axes, *replicas))
        selecting = [a for a in self._copied if a not in self._averaged]
        self._sending = self._with_mine(range(len(owners)), selecting)
        self.of_copy = self._with_mine(self._sending, self._averaged)
        self._ways: list[_Way] = []
        held = self.of_copy
        for hop in hops(layout):
            self._ways.append(_Way(hop, layout, held, self._places))
            held = self._ways[-1].after
        self.mine = held
        self._to_copies = self._dealt(range(len(owners)), self._copied)
        self._order = [j for js in self._to_copies for j in js]
        self._back = sorted(range(len(self._order)), key=self._order.__getitem__)

    def take(self, shards: Shards) -> Step[Shards]:
        """Return this rank's shards of the matrices `of_copy`, with the mean over replicas if these are to be averaged.

        Args:
            shards: this rank's shards of all matrices.
        """
        if not self._averaged:
            return _chosen(shards, self._sending)
        ranks = self.layout.grid.along(self._averaged)
        dealt = self._dealt(self._sending, self._averaged)
        sizes = [sum(shards[j].numel() for j in js) for js in dealt]
        flat = [shards[j].reshape(-1) for js in dealt for j in js]
        whole = torch.cat(flat) if flat else shards[0].new_empty(0)
        mine = yield from ranks.scatter_sum(whole.view(1, -1, 1), sizes)
        mine = mine.view(-1).div_(ranks.size)
        if isinstance(shards, Tensor):
            return mine.view(len(self.of_copy), *shards.shape[1:])
        return _split(mine, [shards[j].shape for j in self.of_copy])

    def bring(self, shards: Shards, like: Tensor, *, rows: Sequence[Sequence[int]] | None = None) -> Step[Shards]:
        """Return the whole matrices that this rank owns: `mine`.

        Args:
            shards: this rank's shards of the matrices `of_copy`.
            like: any tensor with the dtype and the device of all of them.
            rows: for each matrix of the batch which of its rows are sent, in ascending order, if not all.
        """
        for way in self._ways:
            bringing = way.bring(shards, like, rows)
            del shards  # so that their memory is free when they have been sent
            shards = yield from bringing
        return shards

    def send_back(self, wholes: Shards, like: Tensor, *, rows: Sequence[Sequence[int]] | None = None) -> Step[Shards]:
        """Return this rank's shards of the results for the matrices `of_copy`.

        Args:
            wholes: the whole results for the matrices that this rank owns, `mine`.
            like: any tensor with the dtype and the device of all of them.
            rows: as for `bring`.
        """
        for way in reversed(self._ways):
            returning = way.send_back(wholes, like, rows)
            del wholes  # so that their memory is free when they have been sent
            wholes = yield from returning
        return wholes

    def send_to_copies(self, shards: Shards, shapes: Sequence[Sequence[int]], like: Tensor) -> Step[Shards]:
        """Return this rank's shards of the results for all matrices, each from the copy of its owner.

        Args:
            shards: this rank's shards of the results for the matrices `of_copy`.
            shapes: of this rank's shards of all matrices.
            like: any tensor with the dtype and the device of all of them.
        """
        if not self._copied:
            return shards
        sizes = [sum(prod(shapes[j]) for j in js) for js in self._to_copies]
        flat = shards.reshape(-1) if isinstance(shards, Tensor) else _flat(shards, like)
        counts = list(map(len, self._to_copies))
        whole = yield from self.layout.grid.along(self._copied).gather_flat(flat, sizes, counts)
        if isinstance(shards, Tensor):
            return _chosen(whole.view(len(self._back), *shapes[0]), self._back)
        return _chosen(_split(whole, [shapes[j] for j in self._order]), self._back)

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


class _Way:
    """One hop of the matrices of a batch.

    Args:
        hop: of the layout.
        layout: of the matrices.
        held: the matrices of which this rank has parts before the hop.
        places: for each matrix of the batch the place of its owner.

    Attributes:
        after: the matrices that this rank has after the hop.
    """

    def __init__(self, hop: Hop, layout: Layout, held: list[int], places: Sequence[dict[int, int]]) -> None:
        self._hop, self._held = hop, held
        slots = [hop.slot(places[j], layout) for j in held]
        self._order = sorted(range(len(held)), key=slots.__getitem__)  # in which they are sent
        self._slots = [slots[i] for i in self._order]
        self._back = sorted(range(len(held)), key=self._order.__getitem__)
        self.after = [held[i] for i in self._order if slots[i] == hop.line.slot]
        sent, mine = [0] * hop.line.size, hop.numbers[hop.line.slot]
        for slot in slots:
            sent[slot] += mine
        self._sent, self._came = tuple(sent), tuple(len(self.after) * numbers for numbers in hop.numbers)

    def bring(self, shards: Shards, like: Tensor, rows: Sequence[Sequence[int]] | None) -> Step[Shards]:
        hop, ordered = self._hop, _chosen(shards, self._order)
        del shards
        if rows is None:
            assert isinstance(ordered, Tensor)
            asked = Delivery(hop.line, ordered.reshape(-1), self._sent, self._came)
            del ordered
            delivery: Delivery = yield asked
            return hop.joined(delivery.unpacked(), len(self.after))
        lengths = self._lengths([part.numel() for part in ordered])
        counts = [ragged.counts(hop, rows[j]) for j in self.after]
        came = _numbers(hop, counts)
        asked = Delivery(hop.line, _flat(ordered, like), lengths, came)
        del ordered
        delivery = yield asked
        return ragged.joined(hop, delivery.unpacked(), counts)

    def send_back(self, wholes: Shards, like: Tensor, rows: Sequence[Sequence[int]] | None) -> Step[Shards]:
        hop = self._hop
        if rows is None:
            assert isinstance(wholes, Tensor)
            asked = Delivery(hop.line, hop.divided(wholes), self._came, self._sent)
            del wholes
            delivery: Delivery = yield asked
            return _chosen(delivery.unpacked().view(len(self._held), *hop.mine.shape), self._back)
        counts = [ragged.counts(hop, rows[j]) for j in self.after]
        parts_of = ragged.divided(hop, list(wholes), counts)
        own = ragged.counts_of_mine(hop, [rows[self._held[i]] for i in self._order])
        expected = self._lengths([count * hop.mine.cols.length for count in own])
        message = _flat((part for parts in parts_of for part in parts), like)
        del wholes, parts_of
        asked = Delivery(hop.line, message, _numbers(hop, counts), expected)
        del message
        delivery = yield asked
        return _chosen(_split(delivery.unpacked(), [(count, hop.mine.cols.length) for count in own]), self._back)

    def _lengths(self, sizes: Sequence[int]) -> list[int]:
        """Return how many numbers each rank gets, for those of each matrix in the order in which they are sent."""
        lengths = [0] * self._hop.line.size
        for slot, size in zip(self._slots, sizes, strict=True):
            lengths[slot] += size
        return lengths


def _numbers(hop: Hop, counts: Sequence[Sequence[int]]) -> list[int]:
    """Return how many numbers of matrices each rank has parts of, for how many rows of each it has."""
    if not counts:
        return [0] * hop.line.size
    return [sum(each) * box.cols.length for each, box in zip(zip(*counts, strict=True), hop.boxes, strict=True)]


def _chosen(shards: Shards, order: Sequence[int]) -> Shards:
    """Return some of the matrices, in a given order; the same tensor where that is all of them as they are."""
    if len(order) == len(shards) and all(i == j for i, j in enumerate(order)):
        return shards
    if isinstance(shards, Tensor):
        each = shards.unbind()
        return torch.stack([each[j] for j in order]) if order else shards[:0]
    return [shards[j] for j in order]


def _flat(shards: Iterable[Tensor], like: Tensor) -> Tensor:
    flat = [shard.reshape(-1) for shard in shards]
    return torch.cat(flat) if flat else like.new_empty(0)


def _split(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    pieces = torch.split(flat, [prod(shape) for shape in shapes]) if shapes else ()
    return [piece.view(*shape) for piece, shape in zip(pieces, shapes, strict=True)]
