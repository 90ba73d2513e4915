"""One hop of matrices on the way to their owners: several ranks hold parts of each, and one of them gets the whole."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from orthon.sharding.layout import Layout
from orthon.sharding.line import Line
from orthon.sharding.spans import Span


class Box(NamedTuple):
    """A part of a matrix: some of its rows, and of these some of the columns."""

    rows: Span
    cols: Span

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.rows.length, self.cols.length


class _Block(NamedTuple):
    """Boxes that lie regularly in a matrix, and one after the other in a message: inner ones, repeated by outer.

    Attributes:
        first: in the message the numbers before, for one matrix.
        outer: how often the inner ones are repeated.
        inner: how many follow each other in a row.
        shape: of each box.
        offset: where in the flat matrix the first box starts.
        steps: how far apart in the flat matrix the outer ones are, and the inner ones.
    """

    first: int
    outer: int
    inner: int
    shape: tuple[int, int]
    offset: int
    steps: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Hop:
    """Ranks along a line that hold the parts of matrices, before one of them gets the whole of each.

    What a rank sends and gets in a hop is a flat message: what belongs to lower ranks comes first.

    Attributes:
        axes: of the grid, along which the ranks are.
        line: the ranks.
        boxes: for each of them by ascending rank which part of a matrix it has before the hop.
        whole: what is whole after the hop.
    """

    axes: tuple[int, ...]
    line: Line
    boxes: list[Box]
    whole: Box

    @property
    def mine(self) -> Box:
        """The part that this rank has before the hop."""
        return self.boxes[self.line.slot]

    def slot(self, place: Mapping[int, int], layout: Layout) -> int:
        """Return where among the ascending ranks one is whose coordinates are given."""
        index = 0
        for axis in self.axes:
            index = index * layout.grid.ranks.shape[axis] + place[axis]
        return self.line.places[index]

    @cached_property
    def numbers(self) -> list[int]:
        """How many numbers each part has."""
        return [box.rows.length * box.cols.length for box in self.boxes]

    def joined(self, message: Tensor, count: int) -> Tensor:
        """Return whole matrices (count, m, n) of their parts, in few operations however many ranks there are.

        Args:
            message: from each rank its parts of all the matrices.
            count: how many matrices.
        """
        m, n = self.whole.shape
        if count == 1 and self._is_concatenation:
            return message.view(1, m, n)
        whole = message.new_empty(count, m, n)
        for part, place in self._pairs(message, whole):
            place.copy_(part)
        return whole

    def divided(self, whole: Tensor) -> Tensor:
        """Return the message of which `joined` makes `whole` (count, m, n)."""
        if len(whole) == 1 and self._is_concatenation:
            return whole.reshape(-1)
        whole = whole.contiguous()
        message = whole.new_empty(whole.numel())
        for part, place in self._pairs(message, whole):
            part.copy_(place)
        return message

    def _pairs(self, message: Tensor, whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of a message and where they belong, both (outer, inner, count, h, w)."""
        count, m, n = whole.shape
        if not count:
            return
        for block in self._blocks:
            h, w = block.shape
            shape = (block.outer, block.inner, count, h, w)
            numbers = block.outer * block.inner * count * h * w
            part = message[block.first * count : block.first * count + numbers].view(shape)
            place = whole.as_strided(shape, (*block.steps, m * n, n, 1), whole.storage_offset() + block.offset)
            yield part, place

    @cached_property
    def _blocks(self) -> list[_Block]:
        """The boxes, in as few blocks as they make."""
        n = self.whole.cols.length
        singles, first = [], 0
        for box in self.boxes:
            h, w = box.shape
            if h * w:
                offset = (box.rows.start - self.whole.rows.start) * n + box.cols.start - self.whole.cols.start
                singles.append(_Block(first, 1, 1, (h, w), offset, (0, 0)))
            first += h * w
        lines = _repeated(singles, lambda block, count, step: block._replace(inner=count, steps=(0, step)))
        return _repeated(lines, lambda block, count, step: block._replace(outer=count, steps=(step, block.steps[1])))

    @cached_property
    def _is_concatenation(self) -> bool:
        """Whether the parts of one matrix, one after the other, are the matrix."""
        row = self.whole.rows.start
        for box in self.boxes:
            if box.rows.length * box.cols.length == 0:
                continue
            if box.cols != self.whole.cols or box.rows.start != row:
                return False
            row = box.rows.stop
        return True


def hops(layout: Layout) -> list[Hop]:
    """Return the hops on which shards of matrices become whole.

    It is one hop where a process group has all ranks that hold shards of a matrix. Otherwise there is one along each
    axis that cuts; the last to cut comes first. They are found once for a layout.
    """
    if "hops" not in layout.memo:
        layout.memo["hops"] = _made(layout)
    found: list[Hop] = layout.memo["hops"]
    return found


def _made(layout: Layout) -> list[Hop]:
    axes = [axis for cuts in layout.cuts for axis in cuts if layout.grid.ranks.shape[axis] > 1]
    if not axes:
        return []
    if len(layout.grid.along(axes).lines) == 1:
        return [_hop(layout, tuple(sorted(axes)), (0, 0))]
    found, left = [], [len(cuts) for cuts in layout.cuts]
    for dim in (0, 1):
        for axis in reversed(layout.cuts[dim]):
            left[dim] -= 1
            if layout.grid.ranks.shape[axis] > 1:
                found.append(_hop(layout, (axis,), (left[0], left[1]), dim=dim))
    return found


def _hop(layout: Layout, axes: tuple[int, ...], left: tuple[int, int], *, dim: int | None = None) -> Hop:
    """Return a hop along some axes.

    Args:
        layout: of the matrices.
        axes: along which the ranks are.
        left: how many of the axes that cut each dim still cut it after the hop.
        dim: which the hop makes whole, if only one.
    """
    (line,) = layout.grid.along(axes).lines

    def cut_by(counts: Sequence[int]) -> Layout:
        extents = zip(layout.extents, counts, strict=True)
        return replace(layout, extents=tuple(replace(extent, axes=extent.axes[:count]) for extent, count in extents))

    before = layout if dim is None else cut_by([count + (each == dim) for each, count in enumerate(left)])
    boxes = [Box(*spans) for spans in zip(before.spans(0, axes), before.spans(1, axes), strict=True)]
    after = cut_by(left)
    return Hop(axes, line, [boxes[i] for i in line.slots], Box(after.span(0), after.span(1)))


def _repeated(blocks: Sequence[_Block], merged: Callable[[_Block, int, int], _Block]) -> list[_Block]:
    """Return blocks of which those that are alike, and equally far apart, have been merged."""
    found: list[_Block] = []
    run: list[_Block] = []

    def is_next(block: _Block) -> bool:
        if not run:
            return True
        if block._replace(first=0, offset=0) != run[0]._replace(first=0, offset=0):
            return False
        step = block.offset - run[-1].offset
        return step > 0 and (len(run) == 1 or step == run[1].offset - run[0].offset)

    def close() -> None:
        step = run[1].offset - run[0].offset if len(run) > 1 else 0
        found.append(merged(run[0], len(run), step))
        run.clear()

    for block in blocks:
        if not is_next(block):
            close()
        run.append(block)
    if run:
        close()
    return found
