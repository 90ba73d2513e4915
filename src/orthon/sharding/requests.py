"""What computations ask of other ranks, and how the requests of several computations travel in one collective."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.machines.links import gather_into
from orthon.sharding.messages import note_message

if TYPE_CHECKING:
    from orthon.sharding.line import Line


class Request:
    """What one computation asks of the ranks along a line. All of these ask for the same, in the same order.

    Args:
        line: the ranks.
        x: what this rank gives.
    """

    def __init__(self, line: "Line", x: Tensor) -> None:
        self.line = line
        self.dtype, self.device = x.dtype, x.device
        self._x: Tensor | None = x
        self._answer: Tensor | None = None

    def taken(self) -> Tensor:
        """Return what this rank gives, once, so that its memory is free when it has been packed."""
        x, self._x = self._x, None
        assert x is not None
        return x

    def answer(self) -> Any:
        """Return what has arrived, once."""
        answer, self._answer = self._answer, None
        assert answer is not None
        return answer

    def arrived(self, answer: Tensor) -> None:
        """Take what has arrived."""
        self._answer = answer


class Sum(Request):
    """The sum over the ranks of x, whose storage may be overwritten. The answer has its shape."""


class Gather(Request):
    """The numbers x (k,) of all ranks, where k is the same on all. The answer is (ranks, k), by ascending rank."""


class Exchange(Request):
    """Numbers for each of the ranks, and from each. The answer is what arrives, (numbers,), by ascending rank.

    Args:
        line: the ranks.
        x: the numbers to be sent, (numbers,), those for lower ranks first.
        lengths: how many of them go to each rank, by ascending rank. Where they are the same in every step, the same
            tuple should be given again.
        expected: how many come from each, likewise.
    """

    def __init__(self, line: "Line", x: Tensor, lengths: Sequence[int], expected: Sequence[int]) -> None:
        super().__init__(line, x)
        self.lengths, self.expected = lengths, expected


class Delivery(Exchange):
    """An exchange whose answer is a parcel: who gets it takes out what has arrived, and is then alone in holding it.

    Whoever sends an answer to a computation holds it until the computation pauses again. Whole matrices should be free
    before that.
    """

    def answer(self) -> Any:
        """Return the delivery itself, which has what has arrived."""
        return self

    def unpacked(self) -> Tensor:
        """Return what has arrived, once."""
        arrived: Tensor = super().answer()
        return arrived


class Flight(ABC):
    """Requests of one kind that travel together, in one collective."""

    @abstractmethod
    def land(self) -> None:
        """Wait for the collective, and give the requests their answers."""


def sent_together(requests: Sequence[Request]) -> list[Flight]:
    """Send requests, in one collective those that are of one kind and dtype and go over the same ranks."""
    alike: dict[Any, list[Any]] = {}
    for request in requests:
        key = _FLIGHTS[type(request)], id(request.line.group), request.dtype, request.device
        alike.setdefault(key, []).append(request)
    return [flight(those) for (flight, *_), those in alike.items()]


class _SumFlight(Flight):
    def __init__(self, requests: list[Sum]) -> None:
        self._requests = requests
        parts = [request.taken() for request in requests]
        self._shapes = [part.shape for part in parts]
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
        parts = [request.taken() for request in requests]
        self._sizes = [part.numel() for part in parts]
        mine = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        self._received = mine.new_empty(line.size, mine.numel())
        others = (line.size - 1) * mine.numel()
        note_message("gather", line.ranks, self._received, sent=others, received=others)
        self._work = line.start(gather_into, self._received.view(-1), mine)

    def land(self) -> None:
        if self._work is not None:
            self._work.wait()
        for request, part in zip(self._requests, torch.split(self._received, self._sizes, dim=1), strict=True):
            request.arrived(part)


class _ExchangeFlight(Flight):
    def __init__(self, requests: list[Exchange]) -> None:
        self._requests, line = requests, requests[0].line
        out = line.sharing([request.lengths for request in requests])
        self._into = line.sharing([request.expected for request in requests])
        packed = out.mixed([request.taken() for request in requests]).contiguous()
        self._received = packed.new_empty(sum(self._into.lengths))
        slot = line.slot
        sent, came = packed.numel() - out.lengths[slot], self._received.numel() - self._into.lengths[slot]
        note_message("exchange", line.ranks, packed, sent=sent, received=came)
        self._work = line.start(dist.all_to_all_single, self._received, packed, self._into.lengths, out.lengths)
        self._packed: Tensor | None = packed  # as the process group does, so that it counts where there is none

    def land(self) -> None:
        if self._work is not None:
            self._work.wait()
        self._work = self._packed = None  # so that its memory is free
        for request, answer in zip(self._requests, self._into.parted(self._received), strict=True):
            request.arrived(answer)


_FLIGHTS: dict[type[Request], Any] = {
    Sum: _SumFlight,
    Gather: _GatherFlight,
    Exchange: _ExchangeFlight,
    Delivery: _ExchangeFlight,
}
