"""Ranks that work together, and their collectives."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.sharding.step import Step


@dataclass(frozen=True)
class Message:
    """One collective.

    Attributes:
        kind: "sum" (all-reduce), "scatter" (reduce-scatter), "gather" (all-gather) or "exchange" (all-to-all).
        ranks: how many take part.
        numbers: of the tensor that is summed, scattered, or gathered, as a whole; in an exchange, of all that this rank
            sends.
        bytes: of these numbers.
    """

    kind: str
    ranks: int
    numbers: int
    bytes: int

    @property
    def share(self) -> float:
        """What it counts: a sum as one; a scattering and a gathering, which together make one, and an exchange half."""
        return 1.0 if self.kind == "sum" else 0.5


# The name that torch 2.13 gives to it, or the one before.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

T = TypeVar("T")

_log: list[Message] | None = None


@contextmanager
def record_messages() -> Iterator[list[Message]]:
    """Note every collective of Orthon within; those on meta tensors are noted and not carried out."""
    global _log
    before, _log = _log, []
    try:
        yield _log
    finally:
        _log = before


class Line:
    """Ranks along one axis, in the order of the parts that they hold, and the process group of just these.

    Args:
        ranks: global ranks, each once, more than one.
        me: this process, one of them.
        group: their process group, in any order.
    """

    def __init__(self, ranks: Sequence[int], me: int, group: dist.ProcessGroup) -> None:
        self.ranks, self.group = tuple(ranks), group
        self.index = self.ranks.index(me)

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.ranks)

    @cached_property
    def _slots(self) -> list[int]:
        """For each place in the process group, which goes by ascending rank, the index of the part."""
        return sorted(range(self.size), key=self.ranks.__getitem__)

    @cached_property
    def _is_ascending(self) -> bool:
        return self._slots == list(range(self.size))

    def sum(self, x: Tensor) -> Step[Tensor]:
        """Return the sum of `x` over the ranks. May overwrite `x`."""
        x = x.contiguous()
        yield from self._send("sum", x, lambda group: dist.all_reduce(x, group=group, async_op=True))
        return x

    def scatter_sum(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return this rank's rows of the sum of `x` over the ranks.

        It is made of an all-to-all and a local sum in the order of the ranks, which allows uneven shares on every
        backend, and adds up 16-bit numbers in float32.

        Args:
            x: (b, n, r).
            sizes: how many rows each rank receives, in the order of the parts; n in all.

        Returns:
            (b, sizes[index], r).
        """
        b, _, r = x.shape
        mine = sizes[self.index]
        packed = x.new_empty(x.numel())
        lengths = [b * sizes[i] * r for i in self._slots]
        rows = torch.split(x, list(sizes), dim=1)
        if self._is_ascending and len(set(sizes)) == 1:
            packed.view(self.size, b, mine, r).copy_(x.view(b, self.size, mine, r).movedim(1, 0))
        else:
            for i, place in zip(self._slots, torch.split(packed, lengths), strict=True):
                place.view(b, sizes[i], r).copy_(rows[i])
        received = x.new_empty(self.size, b, mine, r)

        def send(group: dist.ProcessGroup) -> Any:
            same = [b * mine * r] * self.size
            return dist.all_to_all_single(received.view(-1), packed, same, lengths, group=group, async_op=True)

        yield from self._send("scatter", packed, send)
        return received.sum(0)

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return the rows of all ranks, one after the other.

        Args:
            x: this rank's rows, (b, sizes[index], r).
            sizes: how many rows each rank has, in the order of the parts.

        Returns:
            (b, n, r), with n the sum of `sizes`.
        """
        b, _, r = x.shape
        longest = max(sizes)
        mine = x.contiguous()
        if x.shape[1] < longest:  # what the backends gather has one size on all ranks
            mine = torch.nn.functional.pad(mine, (0, 0, 0, longest - x.shape[1]))
        parts = x.new_empty(self.size, b, longest, r)

        def send(group: dist.ProcessGroup) -> Any:
            return _gather_into(parts.view(-1), mine.view(-1), group=group, async_op=True)

        yield from self._send("gather", parts, send)
        if self._is_ascending and min(sizes) == longest:
            return parts.movedim(0, 1).reshape(b, self.size * longest, r)
        places = sorted(range(self.size), key=self._slots.__getitem__)  # of each part in the process group
        return torch.cat([parts[place, :, :size] for place, size in zip(places, sizes, strict=True)], dim=1)

    def gather_flat(self, x: Tensor, sizes: Sequence[int], *, level: bool) -> Step[Tensor]:
        """Return the numbers of all ranks, one after the other.

        Args:
            x: this rank's numbers, (sizes[index],).
            sizes: how many numbers each rank has, in the order of the parts.
            level: whether to deal them out evenly before. What the backends gather has one size on all ranks.
        """
        total = sum(sizes)
        if level:
            even = [total // self.size + (i < total % self.size) for i in range(self.size)]
            lengths = _overlaps(sizes, even)  # from each rank to each
            outgoing = [[part] for part in torch.split(x, lengths[self.index])]
            parts = yield from self.exchange(outgoing, [[(row[self.index],)] for row in lengths], x)
            x, sizes = torch.cat([part for (part,) in parts]), even
        whole = yield from self.gather(x.view(1, -1, 1), sizes)
        return whole.view(-1)

    def exchange(
        self, outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[Sequence[Sequence[int]]], like: Tensor
    ) -> Step[list[list[Tensor]]]:
        """Send tensors of any shapes to each of the ranks, and return what each has sent to this one.

        Args:
            outgoing: for each rank, in the order of the parts, the tensors to send to it.
            incoming: the shapes of what it sends.
            like: any tensor of the dtype and on the device of all of them.
        """
        lengths = [sum(x.numel() for x in outgoing[i]) for i in self._slots]
        expected = [sum(map(math.prod, incoming[i])) for i in self._slots]
        packed = torch.cat([like.new_empty(0), *(x.reshape(-1) for i in self._slots for x in outgoing[i])])
        received = like.new_empty(sum(expected))

        def send(group: dist.ProcessGroup) -> Any:
            return dist.all_to_all_single(received, packed, expected, lengths, group=group, async_op=True)

        yield from self._send("exchange", packed, send)
        parts: list[list[Tensor]] = [[] for _ in incoming]
        for i, place in zip(self._slots, torch.split(received, expected), strict=True):
            shapes = incoming[i]
            pieces = torch.split(place, list(map(math.prod, shapes)))
            parts[i] = [piece.view(*shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return parts

    def _send(self, kind: str, whole: Tensor, send: Any) -> Step[None]:
        if _log is not None:
            _log.append(Message(kind, self.size, whole.numel(), whole.nbytes))
        if whole.is_meta:
            return
        work = send(self.group)
        yield
        work.wait()


class Ranks:
    """Ranks that together hold the parts of a tensor: a grid of lines.

    Its collectives are computations that pause while they are in flight. All of the ranks must start the same ones in
    the same order. They run along one line after the other, each over a process group that exists already: to make
    groups asks every process to take part in the same order, which pipeline stages, for one, may not do. Alone, a
    rank gets back what it gives.

    Args:
        ranks: global ranks, in the order of the parts: those of the first line slowest.
        lines: through this rank, along the axes of the grid.
    """

    def __init__(self, ranks: Sequence[int], lines: Sequence[Line]) -> None:
        self.ranks, self.lines = tuple(ranks), tuple(lines)

    def __repr__(self) -> str:
        return f"Ranks({self.ranks})"

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.ranks)

    @cached_property
    def index(self) -> int:
        """Which of the parts is this rank's."""
        index = 0
        for line in self.lines:
            index = index * line.size + line.index
        return index

    def sum(self, x: Tensor) -> Step[Tensor]:
        """Return the sum of `x` over the ranks. May overwrite `x`."""
        for line in self.lines:
            x = yield from line.sum(x)
        return x

    def scatter_sum(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return this rank's rows of the sum of x (b, n, r) over the ranks, (b, sizes[index], r).

        Args:
            x: (b, n, r).
            sizes: how many rows each rank receives, in the order of the parts; n in all.
        """
        for line, blocks in zip(self.lines, self._blocks(sizes), strict=True):
            x = yield from line.scatter_sum(x, blocks)
        return x

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return the rows of all ranks, one after the other, (b, n, r).

        Args:
            x: this rank's rows, (b, sizes[index], r).
            sizes: how many rows each rank has, in the order of the parts; n in all.
        """
        for line, blocks in zip(reversed(self.lines), reversed(self._blocks(sizes)), strict=True):
            x = yield from line.gather(x, blocks)
        return x

    def gather_flat(self, x: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Step[Tensor]:
        """Return the numbers of all ranks, one after the other, however unevenly they are spread.

        Args:
            x: this rank's numbers, (sizes[index],).
            sizes: how many numbers each rank has, in the order of the parts.
            counts: of what, about, by the same measure on all ranks that run along: parts are levelled before where
                padding them to one size would add half of the whole or more.
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
        """Return the largest value of each number over the ranks, at once. Overwrites `x`."""
        for line in self.lines:
            dist.all_reduce(x, dist.ReduceOp.MAX, group=line.group)
        return x

    def collect(self, mine: T) -> list[tuple[int, T]]:
        """Return the rank and the object of each of the ranks, at once, in ascending order."""
        everyones = [(self.ranks[self.index], mine)]
        for line in self.lines:
            parts = [everyones for _ in line.ranks]
            dist.all_gather_object(parts, everyones, group=line.group)
            everyones = [each for part in parts for each in part]
        return sorted(everyones, key=lambda each: each[0])

    def _blocks(self, sizes: Sequence[int]) -> list[list[int]]:
        """Return for each line the rows of this rank's block that go to each of its ranks."""
        blocks, mine = [], list(sizes)
        for line in self.lines:
            length = len(mine) // line.size
            parts = [mine[i * length : (i + 1) * length] for i in range(line.size)]
            blocks.append([sum(part) for part in parts])
            mine = parts[line.index]
        return blocks


def _overlaps(before: Sequence[int], after: Sequence[int]) -> list[list[int]]:
    """Return how many numbers of each part of one division lie in each part of another division of the same numbers."""
    ends = [list(accumulate(sizes, initial=0)) for sizes in (before, after)]
    return [
        [max(0, min(stop, last) - max(start, first)) for first, last in pairwise(ends[1])]
        for start, stop in pairwise(ends[0])
    ]
