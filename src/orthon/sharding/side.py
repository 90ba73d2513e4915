"""One side of the matrices of a batch: which ranks sum, compute and hold what lies along it."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from orthon.sharding.ranks import Ranks
from orthon.sharding.spans import evenly
from orthon.sharding.step import Step


@dataclass(frozen=True, eq=False)
class Side:
    """One side of matrices: their rows, or their columns.

    A tall factor (b, size, r) of the matrices lies along it: a product with them, which is a sum over the other side.
    Several ranks compute it together. Each then has a share of its rows, and `gather` makes the factor of all shares:

        partial = product(side.divided(X), Q)     the terms that this rank knows
        share = yield from side.reduce(partial)   the sum of all terms, for some of the rows
        factor = yield from side.gather(share)

    Attributes:
        size: how many indices of the side this rank holds.
        copies: the ranks that would compute the same terms as this one. They divide the rows among them instead.
        summands: the ranks that know other terms of the same rows.
        holders: the copies and the summands: all ranks that hold the same indices of the side.
        ranks: the ranks whose shares together are the whole factor.
        averaged: how many of the user's replicas are among the summands. Their terms are averaged, not added.
        others: the ranks that hold the same indices of this side, and together all indices of the other side.
        kept_sizes: for each of them, how many of its indices it keeps of a state that is spread over them.
        opposite: how many indices of the other side a rank holds, the most that any does. For a block among others,
            which may lie on few ranks, as many in proportion as of all blocks together; 1 at least.
    """

    size: int
    copies: Ranks
    summands: Ranks
    holders: Ranks
    ranks: Ranks
    averaged: int
    others: Ranks
    kept_sizes: list[int]
    opposite: float

    def divided(self, x: Tensor) -> Tensor:
        """Return the rows of x (b, size, n) that this rank multiplies, (b, its rows, n). Its copies have the others."""
        if self.copies.size == 1:
            return x
        start = sum(self._sizes_of_copies[: self.copies.index])
        return x.narrow(-2, start, self._sizes_of_copies[self.copies.index])

    def reduce(self, partial: Tensor) -> Step[Tensor]:
        """Return this rank's share (b, share, r) of the sum of terms (b, its rows, r). May overwrite `partial`."""
        if self.summands.size == 1:
            return partial
        first = self.copies.index * self.summands.size
        share = yield from self.summands.scatter_sum(partial, self._sizes_of_shares[first : first + self.summands.size])
        return share if self.averaged == 1 else share.div_(self.averaged)

    def gather(self, share: Tensor) -> Step[Tensor]:
        """Return the factor (b, size, r) of shares (b, share, r)."""
        return share if self.holders.size == 1 else (yield from self.holders.gather(share, self._sizes_of_shares))

    def spreads(self, width: int) -> bool:
        """Return whether a state (size, width) along this side is spread over the others.

        It is spread where it would be larger than the momentum otherwise. So what Dion keeps is never more than AdamW's
        two averages. A state that is not spread saves a gathering in each step.
        """
        return self.others.size > 1 and width > self.opposite

    def kept_size(self, width: int) -> int:
        """Return how many rows this rank keeps of a state (size, width)."""
        return self.kept_sizes[self.others.index] if self.spreads(width) else self.size

    def whole(self, kept: Tensor) -> Step[Tensor]:
        """Return a state (b, size, width) of which this rank keeps `kept`."""
        if self.others.size == 1 or not self.spreads(kept.shape[-1]):
            return kept
        return (yield from self.others.gather(kept, self.kept_sizes))

    def keep(self, whole: Tensor) -> Tensor:
        """Return what this rank keeps of a state (b, size, width)."""
        if not self.spreads(whole.shape[-1]):
            return whole
        return whole.narrow(-2, sum(self.kept_sizes[: self.others.index]), self.kept_sizes[self.others.index])

    @cached_property
    def _sizes_of_copies(self) -> list[int]:
        """How many rows each of the copies multiplies."""
        return evenly(self.size, self.copies.size)

    @cached_property
    def _sizes_of_shares(self) -> list[int]:
        """How many rows each of the holders has in its share."""
        return [share for rows in self._sizes_of_copies for share in evenly(rows, self.summands.size)]
