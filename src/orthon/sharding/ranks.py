"""Ranks that work together, and their collectives."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.sharding.line import Line
from orthon.sharding.spans import evenly
from orthon.sharding.step import Step

T = TypeVar("T")

# From so many numbers on, a sum along several lines is scattered along the first.
_LARGE = 1 << 14


class Ranks:
    """Ranks that together hold the shards of a tensor: a line, or a grid of lines.

    Their collectives are computations that pause while they are in flight. All of the ranks must start the same ones
    in the same order. A rank alone gets back what it gives.

    A collective runs along one line after the other, each over a process group that exists already. New groups are
    never made: that would ask every process to take part in the same order, which pipeline stages, for one, may not do.

    `size` is how many they are.

    Args:
        ranks: their global ranks in the order of their shards, those of the first line slowest.
        lines: through this rank, along the axes of the grid.
    """

    def __init__(self, ranks: Sequence[int], lines: Sequence[Line]) -> None:
        self.ranks, self.lines = tuple(ranks), tuple(lines)
        self.size = len(self.ranks)

    def __repr__(self) -> str:
        return f"Ranks({self.ranks})"

    @cached_property
    def index(self) -> int:
        """The place of this rank in `ranks`."""
        index = 0
        for line in self.lines:
            index = index * line.size + line.index
        return index

    def sum(self, x: Tensor) -> Step[Tensor]:
        """Return the sum of `x` over the ranks. May overwrite `x`.

        Along several lines, a large sum is scattered along the first one and gathered at the end, so that the others
        sum only a part of it.
        """
        if len(self.lines) > 1 and x.numel() >= _LARGE:
            sizes = evenly(x.numel(), self.lines[0].size)
            part = yield from self.lines[0].scatter_sum(x.reshape(1, -1, 1), sizes)
            part = yield from self._rest.sum(part)
            whole = yield from self.lines[0].gather(part, sizes)
            return whole.view(x.shape)
        for line in self.lines:
            x = yield from line.sum(x)
        return x

    @cached_property
    def _rest(self) -> "Ranks":
        """The ranks along all lines but the first."""
        size = math.prod(line.size for line in self.lines[1:])
        start = self.index // size * size
        return Ranks(self.ranks[start : start + size], self.lines[1:])

    def scatter_sum(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return this rank's rows of the sum of x (b, n, r) over the ranks, (b, sizes[index], r).

        Args:
            x: (b, n, r).
            sizes: how many rows each rank receives, in the order of `ranks`; n in all.
        """
        for line, blocks in zip(self.lines, self._blocks(sizes), strict=True):
            x = yield from line.scatter_sum(x, blocks)
        return x

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return the rows of all ranks, one after the other, (b, n, r).

        Args:
            x: this rank's rows, (b, sizes[index], r).
            sizes: how many rows each rank has, in the order of `ranks`; n in all.
        """
        for line, blocks in zip(reversed(self.lines), reversed(self._blocks(sizes)), strict=True):
            x = yield from line.gather(x, blocks)
        return x

    def gather_flat(self, x: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Step[Tensor]:
        """Return the numbers of all ranks, one after the other, however unevenly they are spread.

        What the backends gather is padded to one size on all ranks. Where that would add half of the whole or more,
        the numbers are dealt out evenly before.

        Args:
            x: this rank's numbers, (sizes[index],).
            sizes: how many numbers each rank has, in the order of `ranks`.
            counts: about how much each rank has, in any unit. Other lines may have other `sizes`, but all ranks must
                give the same `counts`, as these decide what is padded.
        """
        inner = 1
        for line, blocks in zip(reversed(self.lines), reversed(self._blocks(sizes)), strict=True):
            each = [sum(counts[i : i + inner]) for i in range(0, len(counts), inner)]
            lines = [each[i : i + line.size] for i in range(0, len(each), line.size)]
            level = any(line.size * max(along) > 1.5 * sum(along) for along in lines)
            x = yield from line.gather_flat(x, blocks, level=level)
            inner *= line.size
        return x

    def largest(self, x: Tensor) -> Tensor:
        """Return the largest value of each number over the ranks. Does not pause. Overwrites `x`."""
        for line in self.lines:
            dist.all_reduce(x, dist.ReduceOp.MAX, group=line.group)
        return x

    def collect(self, mine: T) -> list[tuple[int, T]]:
        """Return the rank and the object of each of the ranks, by ascending rank. Does not pause."""
        everyones = [(self.ranks[self.index], mine)]
        for line in self.lines:
            along = [everyones for _ in line.ranks]
            dist.all_gather_object(along, everyones, group=line.group)
            everyones = [each for those in along for each in those]
        return sorted(everyones, key=lambda each: each[0])

    def _blocks(self, sizes: Sequence[int]) -> list[list[int]]:
        """Return for each line how many rows of this rank's block belong to each of its ranks."""
        blocks, mine = [], list(sizes)
        for line in self.lines:
            length = len(mine) // line.size
            split = [mine[i * length : (i + 1) * length] for i in range(line.size)]
            blocks.append(list(map(sum, split)))
            mine = split[line.index]
        return blocks

    def mine(self, count: int, *, turn: int = 0) -> slice:
        """Return which of a batch of `count` matrices are dealt to this rank."""
        sizes = self._dealt(count, turn)
        start = sum(sizes[: self.index])
        return slice(start, start + sizes[self.index])

    def reduce_matrices(self, x: Tensor, combine: Callable[[Tensor], Tensor], *, turn: int = 0) -> Step[Tensor]:
        """Return the parts of all ranks put together, for the matrices that are dealt to this rank.

        Args:
            x: this rank's part for each matrix, (b, k).
            combine: puts the parts (s, b, k) of s ranks together, (b, k), and may overwrite them. It is associative,
                since it is applied along one line after the other.
            turn: the index of the rank to which the first matrices are dealt, modulo `size`.
        """
        for line, blocks in zip(self.lines, self._blocks(self._dealt(len(x), turn)), strict=True):
            mine, k = blocks[line.index], x.shape[1]
            lengths = [rows * k for rows in blocks]
            parts = yield from line.exchange_flat(x.reshape(-1), lengths, [mine * k] * line.size)
            x = combine(parts.view(line.size, mine, k))
        return x

    def gather_matrices(self, x: Tensor, count: int, *, turn: int = 0) -> Step[Tensor]:
        """Return what all ranks have for the matrices that are dealt to them, (count, k).

        Args:
            x: what this rank has, (b of this rank, k).
            count: how many matrices there are.
            turn: the index of the rank to which the first matrices are dealt, modulo `size`.
        """
        for line, blocks in zip(reversed(self.lines), reversed(self._blocks(self._dealt(count, turn))), strict=True):
            if line.size * max(blocks) <= 1.5 * sum(blocks):
                x = (yield from line.gather(x.unsqueeze(0), blocks)).squeeze(0)
                continue
            # It would be padded too much. To itself a rank sends nothing.
            lengths, expected = [x.numel()] * line.size, [rows * x.shape[1] for rows in blocks]
            lengths[line.index] = expected[line.index] = 0
            sent = x.reshape(-1).repeat(line.size - 1)
            others = yield from line.exchange_flat(sent, lengths, expected)
            before = sum(expected[: line.index])
            x = torch.cat([others[:before], x.reshape(-1), others[before:]]).view(-1, x.shape[1])
        return x

    def _dealt(self, count: int, turn: int) -> list[int]:
        """Return how many matrices are dealt to each rank."""
        sizes = evenly(count, self.size)
        return [sizes[(i - turn) % self.size] for i in range(self.size)]
