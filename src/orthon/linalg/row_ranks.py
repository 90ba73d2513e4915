"""What linear algebra needs of the ranks that hold a matrix together: their number, sums, and a dealing of matrices."""

from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor

T = TypeVar("T")

# A computation that may pause. It yields while a sum over ranks is under way, so that others can compute meanwhile, and
# returns a T.
Computation = Generator[Any, Any, T]

# Puts the parts (s, b, k) of s ranks together, (b, k), and may overwrite them. It is associative, and leaves the part
# of one rank as it is.
Combine = Callable[[Tensor], Tensor]


class RowRanks(Protocol):
    """The ranks that hold the rows of a matrix together: each has some of the rows.

    All of them must ask for the same sums in the same order.

    Small work on the matrices of a batch can be dealt out: each rank does it for some of them, as evenly as possible.
    The ranks have an order of dealing. Those from place `turn` on (modulo `size`) get one more where it does not come
    out even. Of two batches, the second should have a `turn` that is larger by the matrices of the first. Then the two
    together are dealt evenly, too.
    """

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    def sum(self, x: Tensor) -> Computation[Tensor]:
        """Return the sum of `x` over the ranks. It may overwrite `x`."""
        ...

    def mine(self, count: int, *, turn: int = 0) -> slice:
        """Return which of a batch of `count` matrices are dealt to this rank."""
        ...

    def reduce_matrices(self, x: Tensor, combine: Combine, *, turn: int = 0) -> Computation[Tensor]:
        """Return the parts of all ranks put together, for the matrices that are dealt to this rank.

        Args:
            x: this rank's part for each of the matrices, (b, k).
            combine: puts parts together.
            turn: the place of the rank with which the dealing starts.

        Returns:
            (b of this rank, k).
        """
        ...

    def gather_matrices(self, x: Tensor, count: int, *, turn: int = 0) -> Computation[Tensor]:
        """Return what all ranks have for the matrices that are dealt to them, (count, k).

        Args:
            x: what this rank has, (b of this rank, k).
            count: how many matrices the batch has.
            turn: the place of the rank with which the dealing starts.
        """
        ...


class _OneRank:
    """A rank that holds all rows, so that its own sum is the sum over all ranks."""

    size = 1

    def sum(self, x: Tensor) -> Computation[Tensor]:
        yield from ()
        return x

    def mine(self, count: int, *, turn: int = 0) -> slice:  # noqa: ARG002
        return slice(0, count)

    def reduce_matrices(self, x: Tensor, combine: Combine, *, turn: int = 0) -> Computation[Tensor]:  # noqa: ARG002
        yield from ()
        return x

    def gather_matrices(self, x: Tensor, count: int, *, turn: int = 0) -> Computation[Tensor]:  # noqa: ARG002
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
