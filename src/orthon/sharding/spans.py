"""Ranges of indices, and how they are cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """A range of indices.

    Attributes:
        start: the first of them.
        stop: the one after the last.
    """

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many indices there are."""
        return self.stop - self.start

    def chunk(self, count: int, which: int) -> "Span":
        """Return one of `count` chunks, of the sizes that torch.chunk makes. The last ones may be empty."""
        size = -(-self.length // count)
        return Span(min(self.start + which * size, self.stop), min(self.start + (which + 1) * size, self.stop))

    def chunks(self, count: int) -> "list[Span]":
        """Return all of these chunks."""
        size = -(-self.length // count)
        edges = [min(self.start + which * size, self.stop) for which in range(count + 1)]
        return list(map(Span, edges, edges[1:]))

    def within(self, outer: "Span") -> "Span":
        """Return the indices that `outer` has as well, counted from its start."""
        start, stop = (min(max(edge, outer.start), outer.stop) - outer.start for edge in self)
        return Span(start, stop)


@dataclass(frozen=True)
class Extent:
    """The indices of one side of a matrix or of one dim of a tensor, and the axes of the grid that cut them.

    For a plain matrix a side is a dim. In a view, an index of the dim may stand for several indices of the side (a
    channel of a convolution does), and the matrix may have some of the indices alone (it is a block among others).

    Attributes:
        size: how many indices the dim has.
        axes: the axes that cut the dim, in the order of cutting. Each cuts as torch.chunk does, so that every rank has
            a span, possibly an empty one.
        unit: how many indices of the side each index of the dim stands for.
        window: which of these the side has; None for all.
    """

    size: int
    axes: tuple[int, ...] = ()
    unit: int = 1
    window: Span | None = None

    @property
    def span(self) -> Span:
        """The indices that the side has."""
        return self.window or Span(0, self.size * self.unit)

    @property
    def length(self) -> int:
        """How many indices the side has."""
        return self.span.length

    def held(self, span: Span) -> Span:
        """Return which indices of the side, counted from its first, belong to these indices of the dim."""
        if self.unit == 1 and self.window is None:
            return span
        return Span(span.start * self.unit, span.stop * self.unit).within(self.span)


def evenly(size: int, count: int) -> list[int]:
    """Return the sizes of `count` pieces that differ by one at most, the larger ones first."""
    return [size // count + (i < size % count) for i in range(count)]


def runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return how many sizes in a row are equal, and that size, for each such run."""
    return [(len(list(same)), size) for size, same in groupby(sizes)]


def overlaps(before: Sequence[int], which: int, after: Sequence[int]) -> list[int]:
    """Return how many numbers of one piece of a division lie in each piece of another division.

    Args:
        before: the sizes of the pieces of the first division.
        which: the piece.
        after: the sizes of the pieces of the other, of the same numbers.
    """
    start = sum(before[:which])
    stop = start + before[which]
    ends = pairwise(accumulate(after, initial=0))
    return [max(0, min(stop, last) - max(start, first)) for first, last in ends]
