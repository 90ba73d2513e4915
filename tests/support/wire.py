"""What goes over the wire where owners work on whole matrices, by the formulas of docs/communication.md."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from orthon.testing import layouts
from orthon.testing.layouts import LAYOUTS


class Wire(NamedTuple):
    """One collective as a rank sees it: numbers of the whole tensor, or those it gives; and what leaves, and comes."""

    kind: str
    ranks: int
    numbers: int
    sent: float
    received: float


Hop = tuple[tuple[int, ...], Wire]  # along which axes, and what


def total(ranks: int, numbers: int) -> Wire:
    """Return a sum, which goes around a ring of ranks twice."""
    around = 2 * numbers * (ranks - 1) / ranks
    return Wire("sum", ranks, numbers, around, around)


def gathering(ranks: int, each: int) -> Wire:
    """Return a gathering of as many numbers from each rank."""
    return Wire("gather", ranks, ranks * each, (ranks - 1) * each, (ranks - 1) * each)


def exchange(ranks: int, given: int, kept: int, came: int) -> Wire:
    """Return an exchange: what a rank gives, what it keeps of that, and what comes from the others."""
    return Wire("exchange", ranks, given, given - kept, came)


def together(first: Sequence[Wire], *others: Sequence[Wire]) -> list[Wire]:
    """Return collectives of which those with one place travel in one."""
    result = []
    for messages in zip(first, *others, strict=True):
        assert len({message[:2] for message in messages}) == 1
        result.append(Wire(*messages[0][:2], *map(sum, list(zip(*messages, strict=True))[2:])))
    return result


class Place:
    """A rank on a layout, and matrices that are dealt out to the ranks in turn.

    Attributes:
        cut: for rows and columns the axes that cut them, in the order of cutting.
        copies: the axes along which ranks have the same part.
        averaged: those of them along which gradients differ.
    """

    def __init__(self, layout: str, world: int, rank: int, count: int) -> None:
        kind = LAYOUTS[layout]
        self._world, self.count = world, count
        self.sizes, self._here = kind.meshes[world], layouts.coordinates(layout, world)[rank]
        axes = [a for a in range(len(self.sizes)) if self.sizes[a] > 1]
        order = axes[::-1] if kind.inner_first else axes  # in which they cut
        self.cut = [[a for a in order if kind.dims[a] == dim] for dim in (0, 1)]
        self.copies = [a for a in axes if kind.dims[a] is None and (not kind.plain or kind.replicas)]
        self.averaged = [a for a in self.copies if kind.compressed and kind.axes[a] == kind.replicas]
        self.deal([a for a in axes if a in (*self.cut[0], *self.cut[1], *self.copies)])

    def deal(self, axes: Sequence[int]) -> None:
        """Deal the matrices out in turn along some axes."""
        places = list(product(*(range(self.sizes[a]) for a in axes)))
        self._owner = [dict(zip(axes, places[j % len(places)], strict=True)) for j in range(self.count)]

    def size(self, axes: Sequence[int]) -> int:
        """Return how many ranks there are along some axes."""
        return math.prod(self.sizes[a] for a in axes)

    def lines(self, axes: Sequence[int]) -> list[list[int]]:
        """Return along which axes each collective runs: along all at once, or along one after the other."""
        if len(axes) > 1 and self.size(axes) == self._world:
            return [list(axes)]
        return [[a] for a in axes]

    def sums(self, numbers: int, axes: Sequence[int]) -> list[Wire]:
        """Return the sums of numbers along some axes."""
        return [total(self.size(line), numbers) for line in self.lines(axes)]

    def gather(self, numbers: int, axes: Sequence[int]) -> list[Wire]:
        """Return the gatherings along some axes of as many numbers from each rank."""
        messages = []
        for line in reversed(self.lines(axes)):
            messages.append(gathering(self.size(line), numbers))
            numbers *= self.size(line)
        return messages

    def mine(self, held: Sequence[int], axes: Sequence[int]) -> list[int]:
        """Return the matrices whose owners are where this rank is along some axes."""
        return [j for j in held if all(self._owner[j][a] == self._here[a] for a in axes)]

    def there_and_back(self, part: int, order: Sequence[int]) -> tuple[list[Hop], list[Hop]]:
        """Return the exchanges on the way to the owners, and those on the way back, where shards are equally large.

        Args:
            part: the numbers that this rank has of a matrix.
            order: the axes that cut, those first that become whole first.
        """
        held, there, back = self.mine(range(self.count), self.copies), list[Hop](), list[Hop]()
        for line in self.lines(order):
            ranks, after = self.size(line), self.mine(held, line)
            mine, axes = len(after) * part, tuple(sorted(line))
            there.append((axes, exchange(ranks, len(held) * part, mine, (ranks - 1) * mine)))
            back.append((axes, exchange(ranks, ranks * mine, mine, len(held) * part - mine)))
            held, part = after, part * ranks
        return there, back[::-1]

    def to_copies(self, part: int) -> list[Wire]:
        """Return the gatherings of parts of all matrices over the copies, dealt out evenly before where that pays."""
        messages = []
        axes = list(self.copies)
        for line in reversed(self.lines(axes)):
            outer, ranks = [a for a in axes if a not in line], self.size(line)
            shares = self._shares(line, outer)
            here = self._index(self._here, line)
            found = [part * share for share in shares[tuple(self._here[a] for a in outer)]]
            if any(ranks * max(of_line) > 1.5 * sum(of_line) for of_line in shares.values()):
                even = [sum(found) // ranks + (i < sum(found) % ranks) for i in range(ranks)]
                kept = _overlap(found, even, here)
                messages.append(exchange(ranks, found[here], kept, even[here] - kept))
                found = even
            messages.append(gathering(ranks, max(found)))
            axes = outer
        return messages

    def _index(self, place: Mapping[int, int] | Sequence[int], axes: Sequence[int]) -> int:
        index = 0
        for a in axes:
            index = index * self.sizes[a] + place[a]
        return index

    def _shares(self, line: Sequence[int], outer: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
        """Return for each place along the outer axes how many matrices the ranks along a line have."""
        shares = {key: [0] * self.size(line) for key in product(*(range(self.sizes[a]) for a in outer))}
        for owner in self._owner:
            shares[tuple(owner[a] for a in outer)][self._index(owner, line)] += 1
        return shares


def _overlap(before: Sequence[int], after: Sequence[int], here: int) -> int:
    """Return how many numbers are on one rank before and after they have been dealt out anew."""
    first, other = sum(before[:here]), sum(after[:here])
    return max(0, min(first + before[here], other + after[here]) - max(first, other))


def side_by_side(*ways: Sequence[Hop]) -> list[Wire]:
    """Return the exchanges of several tensors, hop by hop: those along the same axes travel in one."""
    result = []
    for hops in zip(*ways, strict=True):
        for axes in dict.fromkeys(axes for axes, _ in hops):
            result += together(*([wire] for other, wire in hops if other == axes))
    return result
