"""One side of the matrices of a batch: who sums, factors and holds what lies along it."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from orthon.sharding.ranks import Ranks
from orthon.sharding.step import Step


@dataclass(frozen=True, eq=False)
class Side:
    """One side of matrices: their rows, or their columns.

    A tall factor (b, size, r) of the matrices lies along it. Partial sums of the factor become shares of its rows by
    `reduce`, and `gather` brings the shares of all together.

    Attributes:
        size: how many indices of the side this rank holds.
        copies: the ranks that would compute the same as this one, and divide it among them instead.
        summands: the ranks whose partial sums add up to the factor.
        holders: these and those: the ranks that hold the same indices of the side.
        ranks: the ranks whose shares together are the whole factor.
        averaged: how many of the summands' gradients are averaged instead of added.
        others: the ranks that hold the same indices of this side, and all of the other side.
        pieces: for each of them, the indices of this side that it keeps of a state spread over them.
        opposite: the indices of the other side that a rank holds: the most that any does, and of a block its share.
    """

    size: int
    copies: Ranks
    summands: Ranks
    holders: Ranks
    ranks: Ranks
    averaged: int
    others: Ranks
    pieces: list[int]
    opposite: float

    def part(self, x: Tensor) -> Tensor:
        """Return the rows (b, part, n) of x (b, size, n) that are not left to the copies."""
        if self.copies.size == 1:
            return x
        start = sum(self._parts[: self.copies.index])
        return x.narrow(-2, start, self._parts[self.copies.index])

    def reduce(self, x: Tensor) -> Step[Tensor]:
        """Sum partial sums (b, part, r), and return this rank's share (b, share, r). May overwrite `x`."""
        mine = self.copies.index * self.summands.size
        share = yield from self.summands.scatter_sum(x, self._shares[mine : mine + self.summands.size])
        return share if self.averaged == 1 else share.div_(self.averaged)

    def gather(self, share: Tensor) -> Step[Tensor]:
        """Return the factor (b, size, r) of shares (b, share, r)."""
        return (yield from self.holders.gather(share, self._shares))

    def spreads(self, rank: int) -> bool:
        """Return whether a state (size, rank) along this side is spread over the others.

        It is where it would be larger than the momentum otherwise. Then what Dion keeps is never more than AdamW's
        two averages; where it is not spread, a step saves a gathering.
        """
        return self.others.size > 1 and rank > self.opposite

    def whole(self, kept: Tensor) -> Step[Tensor]:
        """Return a state (b, size, rank) of which this rank keeps `kept`."""
        return (yield from self.others.gather(kept, self.pieces)) if self.spreads(kept.shape[-1]) else kept

    def keep(self, whole: Tensor) -> Tensor:
        """Return what this rank keeps of a state (b, size, rank)."""
        if not self.spreads(whole.shape[-1]):
            return whole
        return whole.narrow(-2, sum(self.pieces[: self.others.index]), self.pieces[self.others.index])

    @cached_property
    def _parts(self) -> list[int]:
        return _evenly(self.size, self.copies.size)

    @cached_property
    def _shares(self) -> list[int]:
        """Sizes of the shares of all holders."""
        return [share for part in self._parts for share in _evenly(part, self.summands.size)]


def _evenly(size: int, count: int) -> list[int]:
    return [size // count + (i < size % count) for i in range(count)]
