"""One parameter, as it lies, read as matrices."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import prod

import torch
from torch import Tensor

from orthon.sharding.layout import Extent, Layout
from orthon.sharding.matrix_view import Reading


@dataclass(frozen=True, eq=False)
class Stack:
    """Matrices of one parameter that have one shape and lie in one way.

    Attributes:
        layout: of each matrix.
        numbers: of those of which this rank has parts, among all matrices of the parameter.
        block: to which they belong, or None if this rank has whole blocks, and these are them.
    """

    layout: Layout
    numbers: tuple[int, ...]
    block: int | None


class Matrices:
    """How the matrices of a parameter lie on the ranks.

    Where every rank has whole blocks of a side that is cut into equal ones (heads, say), a block is to the others as
    an expert is: all of them are one stack. Otherwise each block is a stack of its own, of whose indices a rank has
    those that lie in its part, often none.

    Args:
        layout: of the parameter.
        reading: of its shape.

    Raises:
        NotImplementedError: if the ranks divide what makes one index of a side, such as the places of a kernel.
    """

    def __init__(self, layout: Layout, reading: Reading) -> None:
        self.layout, self.reading = layout, reading
        for side in reading.sides:
            for dim in side[1:]:
                if layout.cuts[dim]:
                    raise NotImplementedError(
                        f"its view cannot be served where dim {dim} of {reading.shape} is cut over ranks; cut dim "
                        f"{side[0]} instead, or another one that numbers matrices"
                    )
        self.divides = len(reading.blocks) > 1
        self.has_equal_blocks = len(set(reading.blocks)) == 1
        self.has_whole_blocks = self.divides and self.has_equal_blocks and self._has_whole_blocks()
        self.is_plain = not self.divides and reading.batch == () and reading.sides == ((0,), (1,))
        self.stacks = self._stacks()

    @property
    def _blocked_dim(self) -> int:
        return self.reading.sides[self.reading.blocked][0]

    def _has_whole_blocks(self) -> bool:
        size, dim = self.reading.blocks[0], self._blocked_dim
        parts = self.layout.parts(dim, self.layout.cuts[dim])
        return all(edge % size == 0 for part in parts for edge in part)

    def _stacks(self) -> tuple[Stack, ...]:
        reading, layout = self.reading, self.layout
        count = len(reading.blocks)
        local = [range(*layout.part(dim)) for dim in reading.batch]
        if self.has_whole_blocks:
            start, stop = layout.part(self._blocked_dim)
            local.append(range(start // reading.blocks[0], stop // reading.blocks[0]))
            return (Stack(self._layout(None), self._numbers(local), None),)
        if not self.divides:
            return (Stack(self._layout(None), self._numbers([*local, range(1)]), None),)
        return tuple(Stack(self._layout(i), self._numbers([*local, range(i, i + 1)]), i) for i in range(count))

    def _numbers(self, local: list[range]) -> tuple[int, ...]:
        sizes = [self.reading.shape[dim] for dim in self.reading.batch] + [len(self.reading.blocks)]
        numbers = []
        for place in product(*local):
            number = 0
            for size, index in zip(sizes, place, strict=True):
                number = number * size + index
            numbers.append(number)
        return tuple(numbers)

    def _layout(self, block: int | None) -> Layout:
        reading = self.reading
        if self.is_plain:
            return self.layout
        apart = [axis for dim in reading.batch for axis in self.layout.cuts[dim]]
        extents = []
        for side, dims in enumerate(reading.sides):
            extent = self.layout.extents[dims[0]]
            unit = prod(reading.shape[dim] for dim in dims[1:])
            window = None
            if side == reading.blocked and self.has_whole_blocks:
                apart += extent.axes
                extent = Extent(reading.blocks[0])
            elif side == reading.blocked and self.divides:
                assert block is not None
                first, last = self._window(block)
                window = first * unit, last * unit
            extents.append(replace(extent, unit=unit, window=window))
        return replace(
            self.layout,
            extents=tuple(extents),
            mesh=None,
            placements=(),
            apart=tuple(sorted(apart)),
            # What lies along whole blocks is one tensor, of which a rank has those of its blocks.
            unspread=reading.blocked if self.has_whole_blocks else None,
        )

    def _window(self, block: int) -> tuple[int, int]:
        ends = list(accumulate(self.reading.blocks))
        return ends[block] - self.reading.blocks[block], ends[block]

    def open(self, part: Tensor, stack: Stack) -> Tensor:
        """Return this rank's parts of the matrices of a stack (count, m, n), a view of `part` where there is one.

        Args:
            part: this rank's part of a tensor that lies as the parameter does.
            stack: one of `stacks`.
        """
        return self._divided(part, stack).reshape(len(stack.numbers), *stack.layout.part_shape)

    def close(self, part: Tensor, stack: Stack, opened: Tensor) -> None:
        """Write what `open` returned, or a copy of it, into `part`."""
        divided = self._divided(part, stack)
        divided.copy_(opened.reshape(divided.shape))

    def factor(self, side: int, width: int, block: int | None, like: Tensor) -> Tensor:
        """Return a state of zeros that lies along one side of all matrices, or of those of one block.

        Args:
            side: 0 for the rows, 1 for the columns.
            width: how many numbers there are for each index of the side.
            block: one of the blocks, if they differ in size and cut the other side.
            like: a plain tensor with the dtype and device.

        Returns:
            (batch dims, dims of the side, blocks if they cut the other side, width).
        """
        reading, layout = self.reading, self.layout
        also = self._spreading(side, width, self.stacks[block or 0])
        dims = [*reading.batch, *reading.sides[side]]
        full = [reading.shape[dim] for dim in dims]
        cuts = {i: layout.cuts[dim] for i, dim in enumerate(dims)}
        first = len(reading.batch)
        cuts[first] += also
        mine = [stop - start for start, stop in map(layout.part, dims)]
        mine[first] = _length(layout.part(dims[first], also=also))
        if self.divides and reading.blocked != side and block is None:
            cuts[len(full)] = layout.cuts[self._blocked_dim] if self.has_whole_blocks else ()
            mine.append(len(reading.blocks))
            if self.has_whole_blocks:
                mine[-1] = _length(layout.part(self._blocked_dim)) // reading.blocks[0]
            full.append(len(reading.blocks))
        return layout.placed(like.new_zeros(*mine, width), (*full, width), cuts)

    def open_factor(self, part: Tensor, side: int, stack: Stack) -> Tensor:
        """Return this rank's part of a state along one side, (count, size, width), a view of `part` if there is one.

        Args:
            part: this rank's part of what `factor` returned.
            side: 0 for the rows, 1 for the columns.
            stack: one of `stacks`.
        """
        size = _length(self.indices(side, part.shape[-1], stack))
        return self._divided_factor(part, side, stack).reshape(len(stack.numbers), size, part.shape[-1])

    def close_factor(self, part: Tensor, side: int, stack: Stack, opened: Tensor) -> None:
        """Write what `open_factor` returned, or a copy of it, into `part`."""
        divided = self._divided_factor(part, side, stack)
        divided.copy_(opened.reshape(divided.shape))

    def indices(self, side: int, width: int, stack: Stack) -> tuple[int, int]:
        """Return which indices of one side this rank keeps of a state along it."""
        return stack.layout.part(side, also=self._spreading(side, width, stack))

    def _spreading(self, side: int, width: int, stack: Stack) -> tuple[int, ...]:
        """Return the axes over which a state along one side is spread, beside those that cut the side."""
        spreads = stack.layout.side(side, share=False, unsynced=False).spreads(width)
        return stack.layout.cuts[1 - side] if spreads else ()

    def _divided(self, part: Tensor, stack: Stack) -> Tensor:
        reading = self.reading
        x = part.permute(*reading.batch, *reading.sides[0], *reading.sides[1])
        before = len(reading.batch)
        return self._blocks(x, before + reading.blocked * len(reading.sides[0]), stack)

    def _divided_factor(self, part: Tensor, side: int, stack: Stack) -> Tensor:
        reading = self.reading
        before = len(reading.batch)
        if not self.divides or reading.blocked == side:
            return self._blocks(part, before, stack, also=self._spreading(side, part.shape[-1], stack))
        if not self.has_equal_blocks:
            return part
        dim = part.ndim - 2
        if stack.block is not None:
            part = part.narrow(dim, stack.block, 1)
        return part.movedim(dim, before)

    def _blocks(self, x: Tensor, dim: int, stack: Stack, *, also: Sequence[int] = ()) -> Tensor:
        """Return the blocks of a stack, of which x has all in `dim`; their number comes after the batch dims."""
        if self.has_whole_blocks:
            blocks: Tensor = torch.unflatten(x, dim, (-1, self.reading.blocks[0]))
            return blocks.movedim(dim, len(self.reading.batch))
        if stack.block is None:
            return x
        start, stop = self.layout.part(self._blocked_dim, also=also)
        first, last = (min(max(edge, start), stop) - start for edge in self._window(stack.block))
        return x.narrow(dim, first, last - first)


def _length(part: tuple[int, int]) -> int:
    return part[1] - part[0]
