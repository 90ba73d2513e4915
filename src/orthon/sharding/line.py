"""Ranks along one axis of a grid, and what they communicate over their process group."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.sharding.requests import Exchange, Gather, Sum
from orthon.sharding.sharing import Sharing
from orthon.sharding.spans import evenly, overlaps, runs
from orthon.sharding.step import Step

# How many ways of sharing a message a line remembers.
_REMEMBERED = 256


class Line:
    """Ranks along one axis, in the order of their shards.

    Args:
        ranks: their global ranks, each once, more than one.
        me: the rank of this process, one of them.
        group: the process group of just these ranks, in any order.
    """

    def __init__(self, ranks: Sequence[int], me: int, group: dist.ProcessGroup) -> None:
        self.ranks, self.group = tuple(ranks), group
        self.index = self.ranks.index(me)

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.ranks)

    @cached_property
    def slots(self) -> list[int]:
        """For each place in the process group, which goes by ascending rank, the index in `ranks`."""
        return sorted(range(self.size), key=self.ranks.__getitem__)

    @cached_property
    def places(self) -> list[int]:
        """For each of `ranks` its place in the process group."""
        return sorted(range(self.size), key=self.slots.__getitem__)

    @property
    def slot(self) -> int:
        """The place of this rank in the process group."""
        return self.places[self.index]

    @cached_property
    def is_ascending(self) -> bool:
        """Whether the places in the process group are those in `ranks`."""
        return self.slots == list(range(self.size))

    def sum(self, x: Tensor) -> Step[Tensor]:
        """Return the sum of `x` over the ranks. May overwrite `x`."""
        result: Tensor = yield Sum(self, x)
        return result

    def scatter_sum(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return this rank's rows of the sum of `x` over the ranks.

        It is an all-to-all, and then a sum on each rank in the order of the ranks. So the ranks may receive unequally
        many rows on every backend, and 16-bit numbers are added up in float32.

        Args:
            x: (b, n, r).
            sizes: how many rows each rank receives, in the order of `ranks`; n in all.

        Returns:
            (b, sizes[index], r).
        """
        b, _, r = x.shape
        mine = sizes[self.index]
        received = yield from self.exchange_flat(
            self._packed(x, sizes), [b * size * r for size in sizes], [b * mine * r] * self.size
        )
        return received.view(self.size, b, mine, r).sum(0)

    def _packed(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the rows of x (b, n, r) that go to each rank, one after the other, as numbers."""
        b, _, r = x.shape
        if b == 1:
            return x.reshape(-1)
        packed, start = x.new_empty(x.numel()), 0
        for count, size in runs(sizes):
            if size == 0:
                continue
            rows = x[:, start : start + count * size].reshape(b, count, size, r).movedim(1, 0)
            packed[start * b * r : (start + count * size) * b * r].view(count, b, size, r).copy_(rows)
            start += count * size
        return packed

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Step[Tensor]:
        """Return the rows of all ranks, one after the other.

        Args:
            x: this rank's rows, (b, sizes[index], r).
            sizes: how many rows each rank has, in the order of `ranks`.

        Returns:
            (b, n, r), with n the sum of `sizes`.
        """
        b, _, r = x.shape
        longest = max(sizes)
        if x.shape[1] < longest:  # what the backends gather has one size on all ranks
            x = torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1]))
        received: Tensor = yield Gather(self, x.reshape(-1))
        rows = received.view(self.size, b, longest, r)
        if not self.is_ascending:
            rows = rows[self.places]
        if min(sizes) == longest:
            return rows.movedim(0, 1).reshape(b, self.size * longest, r)
        first, parts = 0, []
        for count, size in runs(sizes):
            parts.append(rows[first : first + count, :, :size].movedim(0, 1).reshape(b, count * size, r))
            first += count
        return torch.cat(parts, dim=1)

    def gather_flat(self, x: Tensor, sizes: Sequence[int], *, level: bool) -> Step[Tensor]:
        """Return the numbers of all ranks, one after the other.

        Args:
            x: this rank's numbers, (sizes[index],).
            sizes: how many numbers each rank has, in the order of `ranks`.
            level: whether to deal the numbers out evenly before. The backends gather the same number from every rank,
                so that fewer are padded.
        """
        if level:
            even = evenly(sum(sizes), self.size)
            outgoing, incoming = overlaps(sizes, self.index, even), overlaps(even, self.index, sizes)
            x = yield from self.exchange_flat(x, outgoing, incoming)
            sizes = even
        whole = yield from self.gather(x.view(1, -1, 1), sizes)
        return whole.view(-1)

    def exchange_flat(self, x: Tensor, lengths: Sequence[int], expected: Sequence[int]) -> Step[Tensor]:
        """Send each rank its part of x, and return what all of them have sent to this one, one after the other.

        Args:
            x: (numbers,).
            lengths: how many numbers go to each of `ranks`.
            expected: how many come from each.
        """
        if self.is_ascending:
            arrived: Tensor = yield Exchange(self, x, lengths, expected)
            return arrived
        parts = torch.split(x, list(lengths))
        by_slot, came = [lengths[i] for i in self.slots], [expected[i] for i in self.slots]
        arrived = yield Exchange(self, torch.cat([parts[i] for i in self.slots]), by_slot, came)
        those = torch.split(arrived, came)
        return torch.cat([those[place] for place in self.places])

    def sharing(self, lengths_of: Sequence[Sequence[int]]) -> Sharing:
        """Return how exchanges share a message. It is remembered for tuples, which are the same in every step."""
        if not all(isinstance(lengths, tuple) for lengths in lengths_of):
            return Sharing(lengths_of)
        key = tuple(map(id, lengths_of))
        if key not in self._shared:
            if len(self._shared) == _REMEMBERED:  # of plans that are no longer used
                self._shared.clear()
            self._shared[key] = lengths_of, Sharing(lengths_of)  # with the tuples, so that no others get their ids
        return self._shared[key][1]

    @cached_property
    def _shared(self) -> dict[tuple[int, ...], tuple[Sequence[Sequence[int]], Sharing]]:
        return {}

    def start(self, collective: Callable[..., Any], *tensors: Any) -> Any:
        """Start a collective of the process group. Nothing is done on meta, and None returned."""
        return None if tensors[0].is_meta else collective(*tensors, group=self.group, async_op=True)
