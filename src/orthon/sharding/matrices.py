"""The matrices that a parameter is read as, where the parameter lies on several ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import prod

import torch
from torch import Tensor

from orthon.sharding.layout import Layout
from orthon.sharding.matrix_view import Reading
from orthon.sharding.spans import Extent, Span


@dataclass(frozen=True, eq=False)
class Stack:
    """Matrices of one parameter that have one shape and one layout.

    Attributes:
        layout: of each matrix.
        numbers: the numbers of the matrices of which this rank holds shards, among all matrices of the parameter.
        block: the number of the block that they are; None where blocks are not told apart, see `Matrices`.
    """

    layout: Layout
    numbers: tuple[int, ...]
    block: int | None


class Matrices:
    """How the matrices of a parameter lie on the ranks, in stacks of matrices that lie alike.

    A view may cut one side into blocks, each a matrix: query, key and value, or heads. There are two cases.

    - The blocks have one size, and every rank holds whole blocks. Then blocks are like experts: all of them are one
      stack, and each rank has some of its matrices.
    - Otherwise each block is a stack of its own. A rank holds those indices of it that lie in its span of the side.
      These are often none.

    Args:
        layout: of the parameter.
        reading: which dims and blocks are its matrices.

    Attributes:
        divides: whether a side is cut into blocks.
        has_equal_blocks: whether the blocks have one size.
        has_whole_blocks: whether it is the first case.
        is_plain: whether the parameter is one matrix as it lies in memory.
        stacks: all matrices, in the order of the blocks.

    Raises:
        NotImplementedError: if ranks cut a dim that is not the first of a side, such as the places of a kernel.
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
        spans = self.layout.spans(dim, self.layout.cuts[dim])
        return all(edge % size == 0 for span in spans for edge in span)

    def _stacks(self) -> tuple[Stack, ...]:
        reading, layout = self.reading, self.layout
        count = len(reading.blocks)
        local = [range(*layout.span(dim)) for dim in reading.batch]
        if self.has_whole_blocks:
            start, stop = layout.span(self._blocked_dim)
            local.append(range(start // reading.blocks[0], stop // reading.blocks[0]))
            return (Stack(self._layout(None), self._numbers(local), None),)
        if not self.divides:
            return (Stack(self._layout(None), self._numbers([*local, range(1)]), None),)
        return tuple(Stack(self._layout(i), self._numbers([*local, range(i, i + 1)]), i) for i in range(count))

    def _numbers(self, local: list[range]) -> tuple[int, ...]:
        """Return the numbers of matrices, for the indices of the dims that number them, and of the blocks."""
        sizes = [self.reading.shape[dim] for dim in self.reading.batch] + [len(self.reading.blocks)]
        numbers = []
        for place in product(*local):
            number = 0
            for size, index in zip(sizes, place, strict=True):
                number = number * size + index
            numbers.append(number)
        return tuple(numbers)

    def _layout(self, block: int | None) -> Layout:
        """Return the layout of the matrices of one block, or of all."""
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
                window = Span(first * unit, last * unit)
            extents.append(replace(extent, unit=unit, window=window))
        return replace(
            self.layout,
            extents=tuple(extents),
            mesh=None,
            placements=(),
            apart=tuple(sorted(apart)),
            # A state along that side is one tensor for all blocks, and cut where they are. So it is not spread.
            unspread=reading.blocked if self.has_whole_blocks else None,
        )

    def _window(self, block: int) -> Span:
        """Return which indices of the blocked dim a block has."""
        ends = list(accumulate(self.reading.blocks))
        return Span(ends[block] - self.reading.blocks[block], ends[block])

    def open(self, shard: Tensor, stack: Stack) -> Tensor:
        """Return this rank's shards of the matrices of a stack, (count, m', n'). It is a view of `shard` if possible.

        Args:
            shard: this rank's shard of a tensor that lies as the parameter does.
            stack: one of `stacks`.
        """
        return self._divided(shard, stack).reshape(len(stack.numbers), *stack.layout.shard_shape)

    def close(self, shard: Tensor, stack: Stack, opened: Tensor) -> None:
        """Write what `open` returned, or a copy of it, into `shard`."""
        divided = self._divided(shard, stack)
        divided.copy_(opened.reshape(divided.shape))

    def factor(self, side: int, width: int, block: int | None, like: Tensor) -> Tensor:
        """Return a state of zeros that lies along one side of all matrices, or of those of one block.

        Args:
            side: 0 for the rows, 1 for the columns.
            width: how many numbers there are for each index of the side.
            block: the number of a block that needs a state of its own; None for all matrices.
            like: a plain tensor with the dtype and device.

        Returns:
            the state, (batch dims, dims of the side, width), or (batch dims, dims of the side, blocks, width) where the
            blocks cut the other side.
        """
        reading, layout = self.reading, self.layout
        also = self._spreading(side, width, self.stacks[block or 0])
        dims = [*reading.batch, *reading.sides[side]]
        full = [reading.shape[dim] for dim in dims]
        cuts = {i: layout.cuts[dim] for i, dim in enumerate(dims)}
        first = len(reading.batch)
        cuts[first] += also
        mine = [layout.span(dim).length for dim in dims]
        mine[first] = layout.span(dims[first], also=also).length
        if self.divides and reading.blocked != side and block is None:
            cuts[len(full)] = layout.cuts[self._blocked_dim] if self.has_whole_blocks else ()
            mine.append(len(reading.blocks))
            if self.has_whole_blocks:
                mine[-1] = layout.span(self._blocked_dim).length // reading.blocks[0]
            full.append(len(reading.blocks))
        return layout.placed(like.new_zeros(*mine, width), (*full, width), cuts)

    def open_factor(self, shard: Tensor, side: int, stack: Stack) -> Tensor:
        """Return what this rank keeps of a state along one side, (count, size, width). A view of `shard` if possible.

        Args:
            shard: this rank's shard of what `factor` returned.
            side: 0 for the rows, 1 for the columns.
            stack: one of `stacks`.
        """
        size = self.indices(side, shard.shape[-1], stack).length
        return self._divided_factor(shard, side, stack).reshape(len(stack.numbers), size, shard.shape[-1])

    def close_factor(self, shard: Tensor, side: int, stack: Stack, opened: Tensor) -> None:
        """Write what `open_factor` returned, or a copy of it, into `shard`."""
        divided = self._divided_factor(shard, side, stack)
        divided.copy_(opened.reshape(divided.shape))

    def indices(self, side: int, width: int, stack: Stack) -> Span:
        """Return for which indices of one side this rank keeps a state along it."""
        return stack.layout.span(side, also=self._spreading(side, width, stack))

    def _spreading(self, side: int, width: int, stack: Stack) -> tuple[int, ...]:
        """Return the axes over which a state along one side is spread, beside those that cut the side."""
        spreads = stack.layout.side(side, divide=False, unsynced=False).spreads(width)
        return stack.layout.cuts[1 - side] if spreads else ()

    def _divided(self, shard: Tensor, stack: Stack) -> Tensor:
        """Return a view of `shard` with all batch dims first, then the dims of the rows and those of the columns."""
        reading = self.reading
        x = shard.permute(*reading.batch, *reading.sides[0], *reading.sides[1])
        before = len(reading.batch)
        return self._blocks(x, before + reading.blocked * len(reading.sides[0]), stack)

    def _divided_factor(self, shard: Tensor, side: int, stack: Stack) -> Tensor:
        """Return a view of `shard` with all batch dims first, then the dims of the side and the width."""
        reading = self.reading
        before = len(reading.batch)
        if not self.divides or reading.blocked == side:
            return self._blocks(shard, before, stack, also=self._spreading(side, shard.shape[-1], stack))
        if not self.has_equal_blocks:
            return shard
        dim = shard.ndim - 2
        if stack.block is not None:
            shard = shard.narrow(dim, stack.block, 1)
        return shard.movedim(dim, before)

    def _blocks(self, x: Tensor, dim: int, stack: Stack, *, also: Sequence[int] = ()) -> Tensor:
        """Return the blocks of a stack as matrices of their own.

        Args:
            x: has the blocks of all stacks in a dim.
            dim: that dim.
            stack: one of `stacks`.
            also: more axes that cut the dim.
        """
        if self.has_whole_blocks:
            blocks: Tensor = torch.unflatten(x, dim, (-1, self.reading.blocks[0]))
            return blocks.movedim(dim, len(self.reading.batch))
        if stack.block is None:
            return x
        mine = self._window(stack.block).within(self.layout.span(self._blocked_dim, also=also))
        return x.narrow(dim, mine.start, mine.length)
