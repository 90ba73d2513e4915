"""What computations ask of other ranks, and how the requests of several computations travel in one collective."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.sharding.cost import note_message

if TYPE_CHECKING:
    from orthon.sharding.line import Line

# The name that torch 2.13 gives to it, or the one before.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Request(ABC):
    """What one computation asks of the ranks along a line. All of these ask for the same, in the same order.

    Attributes:
        line: the ranks.
        numbers: what this rank gives; of exchanges a list of parts.
    """

    kind: ClassVar[type["Flight"]]

    def __init__(self, line: "Line", like: Tensor) -> None:
        self.line = line
        self.dtype, self.device = like.dtype, like.device
        self._answer: Tensor | None = None

    def answer(self) -> Tensor:
        """Return what has arrived, once."""
        answer, self._answer = self._answer, None
        assert answer is not None
        return answer

    def arrived(self, answer: Tensor) -> None:
        """Take what has arrived."""
        self._answer = answer


class Sum(Request):
    """The sum over the ranks of x, whose storage may be overwritten. The answer has its shape."""

    def __init__(self, line: "Line", x: Tensor) -> None:
        super().__init__(line, x)
        self.x: Tensor | None = x


class Gather(Request):
    """The numbers x (k,) of all ranks, where k is the same on all. The answer is (ranks, k), by ascending rank."""

    def __init__(self, line: "Line", x: Tensor) -> None:
        super().__init__(line, x)
        self.x: Tensor | None = x


class Exchange(Request):
    """Numbers for each of the ranks, and from each. The answer is what arrives, (numbers,), by ascending rank.

    Args:
        line: the ranks.
        parts: the numbers to be sent, each part for one rank, those for lower ranks first. If it is one tensor, it has
            the numbers for all ranks.
        slots: for each part the place of its rank among the ascending ranks.
        lengths: how many numbers go to each rank, by ascending rank.
        expected: how many come from each.
        like: any tensor of the dtype and on the device of the numbers.
    """

    def __init__(
        self,
        line: "Line",
        parts: Tensor | Sequence[Tensor],
        slots: Sequence[int],
        *,
        lengths: Sequence[int],
        expected: Sequence[int],
        like: Tensor,
    ) -> None:
        super().__init__(line, like)
        self.parts: Tensor | Sequence[Tensor] | None = parts
        self.slots, self.lengths, self.expected = slots, lengths, expected


class Flight(ABC):
    """Requests of one kind that travel together, in one collective."""

    @abstractmethod
    def land(self) -> None:
        """Wait for the collective, and give the requests their answers."""


def sent_together(requests: Sequence[Request]) -> list[Flight]:
    """Send requests, in one collective those that are of one kind and dtype and go over the same ranks."""
    alike: dict[Any, list[Any]] = {}
    for request in requests:
        alike.setdefault((type(request), id(request.line.group), request.dtype, request.device), []).append(request)
    return [_FLIGHTS[kind](those) for (kind, *_), those in alike.items()]


class _SumFlight(Flight):
    def __init__(self, requests: list[Sum]) -> None:
        self._requests = requests
        self._shapes = [cast(Tensor, request.x).shape for request in requests]
        parts = [cast(Tensor, request.x) for request in requests]
        for request in requests:
            request.x = None
        self._whole = parts[0].contiguous() if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
        line = requests[0].line
        ring = 2 * self._whole.numel() * (line.size - 1) / line.size
        note_message("sum", line.ranks, self._whole, sent=ring, received=ring)
        self._work = line.start(dist.all_reduce, self._whole)

    def land(self) -> None:
        if self._work is not None:
            self._work.wait()
        if len(self._requests) == 1:
            self._requests[0].arrived(self._whole)
            return
        sizes = [shape.numel() for shape in self._shapes]
        for request, part, shape in zip(self._requests, torch.split(self._whole, sizes), self._shapes, strict=True):
            request.arrived(part.view(shape))


class _GatherFlight(Flight):
    def __init__(self, requests: list[Gather]) -> None:
        self._requests, line = requests, requests[0].line
        parts = [cast(Tensor, request.x) for request in requests]
        for request in requests:
            request.x = None
        self._sizes = [part.numel() for part in parts]
        mine = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        self._received = mine.new_empty(line.size, mine.numel())
        others = (line.size - 1) * mine.numel()
        note_message("gather", line.ranks, self._received, sent=others, received=others)
        self._work = line.start(_gather_into, self._received.view(-1), mine)

    def land(self) -> None:
        if self._work is not None:
            self._work.wait()
        for request, part in zip(self._requests, torch.split(self._received, self._sizes, dim=1), strict=True):
            request.arrived(part)


class _ExchangeFlight(Flight):
    def __init__(self, requests: list[Exchange]) -> None:
        self._requests, line = requests, requests[0].line
        if len(requests) == 1:
            self._lengths, self._expected = requests[0].lengths, requests[0].expected
        else:
            self._lengths = list(map(sum, zip(*(request.lengths for request in requests), strict=True)))
            self._expected = list(map(sum, zip(*(request.expected for request in requests), strict=True)))
        packed = _packed(requests)
        for request in requests:
            request.parts = None
        self._received = packed.new_empty(sum(self._expected))
        slot = line.slot
        sent, came = packed.numel() - self._lengths[slot], self._received.numel() - self._expected[slot]
        note_message("exchange", line.ranks, packed, sent=sent, received=came)
        self._work = line.start(
            dist.all_to_all_single, self._received, packed, list(self._expected), list(self._lengths)
        )

    def land(self) -> None:
        if self._work is not None:
            self._work.wait()
        expecting = [request for request in self._requests if sum(request.expected)]
        for request in self._requests:
            request.arrived(self._received if [request] == expecting else self._received[:0])
        if len(expecting) < 2:
            return
        # What comes from one rank is in the order of the requests.
        parts: list[list[Tensor]] = [[] for _ in expecting]
        counts, whose = [], []
        for each in zip(*(request.expected for request in expecting), strict=True):
            for which, count in enumerate(each):
                if count:
                    counts.append(count)
                    whose.append(which)
        for which, part in zip(whose, torch.split(self._received, counts), strict=True):
            parts[which].append(part)
        for request, those in zip(expecting, parts, strict=True):
            request.arrived(those[0] if len(those) == 1 else torch.cat(those))


def _packed(requests: Sequence[Exchange]) -> Tensor:
    """Return the numbers of all requests, those for lower ranks first, and of one rank in the order of the requests."""
    first = requests[0]
    if len(requests) == 1:
        if isinstance(first.parts, Tensor):
            return first.parts.reshape(-1)
        parts = [part.reshape(-1) for part in cast(Sequence[Tensor], first.parts)]
    else:
        placed: list[tuple[int, int, Tensor]] = []
        for which, request in enumerate(requests):
            if isinstance(request.parts, Tensor):
                slots = [slot for slot, length in enumerate(request.lengths) if length]
                pieces: Sequence[Tensor] = (
                    torch.split(request.parts.reshape(-1), [request.lengths[slot] for slot in slots]) if slots else ()
                )
            else:
                slots, pieces = list(request.slots), [part.reshape(-1) for part in request.parts or ()]
            placed += [(slot, which, piece) for slot, piece in zip(slots, pieces, strict=True)]
        placed.sort(key=lambda each: each[:2])
        parts = [piece for _, _, piece in placed]
    if not parts:
        return torch.empty(0, dtype=first.dtype, device=first.device)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


_FLIGHTS: dict[type[Request], Any] = {Sum: _SumFlight, Gather: _GatherFlight, Exchange: _ExchangeFlight}
