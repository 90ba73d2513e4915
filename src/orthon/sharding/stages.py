"""How parts of matrices come together on the ranks to which these are dealt, and how results come back."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from orthon.sharding.line import Line
from orthon.sharding.step import Step


class Stage:
    """Ranks of a line that exchange matrices among themselves, while the others of the line do so, too.

    Args:
        line: all ranks.
        counts: how many matrices go to each of those of the stage, on their way to where they are dealt to.
        start: the index of the first of them.
        step: the distance of their indices.
    """

    def __init__(self, line: Line, counts: Sequence[int], *, start: int = 0, step: int = 1) -> None:
        self._line, self._counts = line, list(counts)
        self._members = slice(start, start + step * len(self._counts), step)
        self._index = (line.index - start) // step
        self._mine = self._counts[self._index]
        self._lengths = cache(self._lengths_of)

    def collect(self, x: Tensor) -> Step[Tensor]:
        """Return the parts that the ranks have of this rank's matrices.

        Args:
            x: this rank's part of all matrices of the stage, (b, k).

        Returns:
            (ranks, this rank's matrices, k).
        """
        k = x.shape[1]
        away, here, _, _ = self._lengths(k)
        parts = yield from self._line.exchange_flat(x.reshape(-1), away, here)
        return parts.view(len(self._counts), self._mine, k)

    def spread(self, x: Tensor) -> Step[Tensor]:
        """Return what all ranks have, for all matrices of the stage, (b, k).

        Args:
            x: what this rank has, (this rank's matrices, k).
        """
        ranks, k = len(self._counts), x.shape[1]
        if ranks == self._line.size and ranks * max(self._counts) <= 1.5 * sum(self._counts):
            return (yield from self._line.gather(x.unsqueeze(0), self._counts)).squeeze(0)
        # It would be padded too much, or not all ranks take part. To itself a rank sends nothing.
        _, _, away, here = self._lengths(k)
        others = yield from self._line.exchange_flat(x.reshape(-1).repeat(ranks - 1), away, here)
        before = sum(self._counts[: self._index]) * k
        return torch.cat([others[:before], x.reshape(-1), others[before:]]).view(-1, k)

    def _lengths_of(self, k: int) -> tuple[tuple[int, ...], ...]:
        """Return how many numbers go to all ranks of the line, and come from them: to collect, and to spread."""
        ranks, mine = len(self._counts), self._mine * k
        to_collect = [count * k for count in self._counts], [mine] * ranks
        to_spread = [mine] * ranks, [count * k for count in self._counts]
        for lengths in to_spread:
            lengths[self._index] = 0
        return tuple(map(self._along_the_line, (*to_collect, *to_spread)))

    def _along_the_line(self, lengths: Sequence[int]) -> tuple[int, ...]:
        result = [0] * self._line.size
        result[self._members] = lengths
        return tuple(result)


def stages_of(line: Line, counts: Sequence[int], *, most: int) -> list[Stage]:
    """Return the stages in which parts of matrices come together.

    A rank to which all others send their parts receives as many parts as there are ranks. Where few matrices are dealt
    to many ranks, they take two stages instead. First, ranks far from each other put parts together, and then
    neighbours what has come of it. So a rank receives about twice the square root.

    Args:
        line: the ranks.
        counts: how many matrices are dealt to each of them.
        most: how many these are at most, on any such line. All lines must take equally many stages.
    """
    far, near = two_factors(line.size)
    if 2 * (far * math.ceil(most / far) + near * math.ceil(most / line.size)) > line.size * math.ceil(most / line.size):
        return [Stage(line, counts)]
    blocks = [sum(counts[i : i + near]) for i in range(0, line.size, near)]
    first = line.index // near * near
    return [
        Stage(line, blocks, start=line.index - first, step=near),
        Stage(line, counts[first : first + near], start=first),
    ]


def two_factors(size: int) -> tuple[int, int]:
    """Return two factors of a number that differ the least, the smaller one first."""
    smaller = next(k for k in range(math.isqrt(size), 0, -1) if size % k == 0)
    return smaller, size // smaller
