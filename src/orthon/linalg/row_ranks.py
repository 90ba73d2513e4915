"""What linear algebra needs of the ranks that hold a matrix together: their number and a sum over them."""

from collections.abc import Generator
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor

T = TypeVar("T")

# A computation that may pause. It yields while a sum over ranks is under way, so that others can compute meanwhile, and
# returns a T.
Computation = Generator[Any, Any, T]


class RowRanks(Protocol):
    """The ranks that hold the rows of a matrix together: each has some of the rows.

    All of them must ask for the same sums in the same order.
    """

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    def sum(self, x: Tensor) -> Computation[Tensor]:
        """Return the sum of `x` over the ranks. It may overwrite `x`."""
        ...


class _OneRank:
    """A rank that holds all rows, so that its own sum is the sum over all ranks."""

    size = 1

    def sum(self, x: Tensor) -> Computation[Tensor]:
        yield from ()
        return x


ONE_RANK: RowRanks = _OneRank()


def result_of(computation: Computation[T]) -> T:
    """Run a computation on one rank, which never pauses, and return its result."""
    try:
        next(computation)
    except StopIteration as end:
        return cast(T, end.value)
    raise AssertionError("a computation on one rank should not pause")
