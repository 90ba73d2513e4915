"""Ranks along one axis of a grid, and the collectives of their process group."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.sharding.cost import note_message
from orthon.sharding.spans import evenly, overlaps
from orthon.sharding.step import Step

# The name that torch 2.13 gives to it, or the one before.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


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
    def _slots(self) -> list[int]:
        """For each place in the process group, which goes by ascending rank, the index in `ranks`."""
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
            sizes: how many rows each rank has, in the order of `ranks`.

        Returns:
            (b, n, r), with n the sum of `sizes`.
        """
        b, _, r = x.shape
        longest = max(sizes)
        mine = x.contiguous()
        if x.shape[1] < longest:  # what the backends gather has one size on all ranks
            mine = torch.nn.functional.pad(mine, (0, 0, 0, longest - x.shape[1]))
        received = x.new_empty(self.size, b, longest, r)

        def send(group: dist.ProcessGroup) -> Any:
            return _gather_into(received.view(-1), mine.view(-1), group=group, async_op=True)

        yield from self._send("gather", received, send)
        if self._is_ascending and min(sizes) == longest:
            return received.movedim(0, 1).reshape(b, self.size * longest, r)
        places = sorted(range(self.size), key=self._slots.__getitem__)  # of each rank in the process group
        return torch.cat([received[place, :, :size] for place, size in zip(places, sizes, strict=True)], dim=1)

    def gather_flat(self, x: Tensor, sizes: Sequence[int], *, level: bool) -> Step[Tensor]:
        """Return the numbers of all ranks, one after the other.

        Args:
            x: this rank's numbers, (sizes[index],).
            sizes: how many numbers each rank has, in the order of `ranks`.
            level: whether to deal the numbers out evenly before. The backends gather the same number from every rank,
                so that fewer are padded.
        """
        total = sum(sizes)
        if level:
            even = evenly(total, self.size)
            lengths = overlaps(sizes, even)  # from each rank to each
            outgoing = [[piece] for piece in torch.split(x, lengths[self.index])]
            received = yield from self.exchange(outgoing, [[(row[self.index],)] for row in lengths], x)
            x, sizes = torch.cat([piece for (piece,) in received]), even
        whole = yield from self.gather(x.view(1, -1, 1), sizes)
        return whole.view(-1)

    def exchange(
        self, outgoing: Sequence[Sequence[Tensor]], incoming: Sequence[Sequence[Sequence[int]]], like: Tensor
    ) -> Step[list[list[Tensor]]]:
        """Send tensors of any shapes to each of the ranks, and return what each has sent to this one.

        Args:
            outgoing: for each rank, in the order of `ranks`, the tensors to send to it.
            incoming: for each rank the shapes of the tensors that it sends.
            like: any tensor with the dtype and the device of all of them.
        """
        lengths = [sum(x.numel() for x in outgoing[i]) for i in self._slots]
        expected = [sum(map(math.prod, incoming[i])) for i in self._slots]
        packed = torch.cat([like.new_empty(0), *(x.reshape(-1) for i in self._slots for x in outgoing[i])])
        received = like.new_empty(sum(expected))

        def send(group: dist.ProcessGroup) -> Any:
            return dist.all_to_all_single(received, packed, expected, lengths, group=group, async_op=True)

        yield from self._send("exchange", packed, send)
        sent: list[list[Tensor]] = [[] for _ in incoming]
        for i, place in zip(self._slots, torch.split(received, expected), strict=True):
            shapes = incoming[i]
            pieces = torch.split(place, list(map(math.prod, shapes)))
            sent[i] = [piece.view(*shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return sent

    def _send(self, kind: str, whole: Tensor, send: Any) -> Step[None]:
        note_message(kind, self.size, whole)
        if whole.is_meta:
            return
        work = send(self.group)
        yield
        work.wait()
