"""Ranks that work together, and their collectives."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from orthon.sharding.line import Line
from orthon.sharding.spans import evenly
from orthon.sharding.stages import Stage, stages_of, two_factors
from orthon.sharding.step import Step

T = TypeVar("T")

# From so many numbers on, a sum along several lines is scattered along the first.
_LARGE = 1 << 14

# How many dealings of matrices are remembered.
_REMEMBERED = 256


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
        sizes = self.dealt(count, turn=turn)
        start = sum(sizes[: self.index])
        return slice(start, start + sizes[self.index])

    def reduce_matrices(self, x: Tensor, combine: Callable[[Tensor], Tensor], *, turn: int = 0) -> Step[Tensor]:
        """Return the parts of all ranks put together, for the matrices that are dealt to this rank.

        Args:
            x: this rank's part for each matrix, (b, k).
            combine: puts the parts (s, b, k) of s ranks together, (b, k), and may overwrite them. It is associative,
                since it is applied in one stage after the other.
            turn: the place of the rank with which the dealing starts.
        """
        for stage in self._stages(len(x), turn):
            x = combine((yield from stage.collect(x)))
        return x

    def gather_matrices(self, x: Tensor, count: int, *, turn: int = 0) -> Step[Tensor]:
        """Return what all ranks have for the matrices that are dealt to them, (count, k).

        Args:
            x: what this rank has, (b of this rank, k).
            count: how many matrices there are.
            turn: the place of the rank with which the dealing starts.
        """
        for stage in reversed(self._stages(count, turn)):
            x = yield from stage.spread(x)
        return x

    def _stages(self, count: int, turn: int) -> list[Stage]:
        """Return the stages in which parts of matrices come together. They are remembered, as steps repeat them."""
        key = count, turn % self.size
        if key not in self._remembered:
            if len(self._remembered) == _REMEMBERED:
                self._remembered.clear()
            stages: list[Stage] = []
            most = count
            for line, counts in zip(self.lines, self._blocks(self.dealt(count, turn=turn)), strict=True):
                stages += stages_of(line, counts, most=most)
                most = math.ceil(most / line.size)
            self._remembered[key] = stages
        return self._remembered[key]

    @cached_property
    def _remembered(self) -> dict[tuple[int, int], list[Stage]]:
        return {}

    def dealt(self, count: int, *, turn: int = 0) -> list[int]:
        """Return how many of a batch of `count` matrices are dealt to each of `ranks`."""
        each, more = divmod(count, self.size)
        return [each + ((place - turn) % self.size < more) for place in self._places]

    @cached_property
    def _places(self) -> list[int]:
        """For each rank its place in the order of dealing, in which ranks that follow each other are far apart.

        So matrices that are dealt to few ranks take different ways to them.
        """
        places, weight = [0], 1
        for size in (factor for line in self.lines for factor in two_factors(line.size)):
            places = [place + weight * digit for place in places for digit in range(size)]
            weight *= size
        return places
