"""Sums over the ranks that together hold one side of a matrix."""

from collections.abc import Generator
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")

# A computation that hands over control (yields) while a collective is in flight, and ends with a T.
Step = Generator[None, None, T]


class Ranks(Protocol):
    """The ranks that together hold all rows (or all columns) of the matrices of a batch."""

    def sum(self, x: Tensor) -> Step[Tensor]:
        """Return the sum of `x` over these ranks; every one of them must call it with its own part."""
        ...


class OneRank:
    """A single rank that holds everything: a sum over it is the summand, and nothing is ever in flight."""

    def sum(self, x: Tensor) -> Step[Tensor]:
        """Return `x` itself."""
        yield from ()
        return x


ONE_RANK = OneRank()
