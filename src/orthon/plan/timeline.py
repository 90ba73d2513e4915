"""When the ranks compute, send and wait in a step: its waves under way together, on one machine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orthon.step.plan import AT_ONCE


@dataclass(frozen=True)
class TimedWave:
    """The segments of a wave, for each kind of rank.

    Attributes:
        kinds: of each rank, an index, (ranks,).
        work: seconds of the device, (kinds, segments).
        launches: seconds in which the host starts that, (kinds, segments).
        sending: for each segment its collectives: over which link, and the seconds of the slowest rank.
    """

    kinds: Tensor
    work: Tensor
    launches: Tensor
    sending: Sequence[Sequence[tuple[str, float]]]


@dataclass(frozen=True)
class Course:
    """The times of a step.

    Attributes:
        seconds: until the last rank is done.
        ends: when each rank is done, (ranks,).
        working: how long each rank computes, or its device waits for the host, (ranks,), in seconds.
        sending: seconds of all collectives.
    """

    seconds: float
    ends: Tensor
    working: Tensor
    sending: float

    @property
    def exposed(self) -> float:
        """The seconds that the rank with the most work waits, since no work hides what is sent."""
        return max(0.0, self.seconds - float(self.working.max()))


def simulated(sets: Iterable[Sequence[TimedWave]], *, on_cpu: bool) -> Course:
    """Return the times of a step whose waves take turns as `orthon.sharding.run` lets them.

    A collective begins when all ranks have come to it and its link is free, and ends for all of them at once. On an
    accelerator, the host starts operations ahead of the device, and collectives travel beside the work. A CPU is host
    and device, and what is sent takes the time of its cores as well.

    Args:
        sets: the waves, in sets that follow each other.
        on_cpu: whether the ranks are CPUs.
    """
    clock = _Clock(on_cpu=on_cpu)
    for waves in sets:
        under_way: list[_Turns] = []
        coming = iter(waves)
        while True:
            if len(under_way) < AT_ONCE and (wave := next(coming, None)) is not None:
                under_way.insert(0, _Turns(wave))
            if not under_way:
                break
            under_way = [turns for turns in under_way if clock.go_on(turns)]
    return clock.read()


class _Turns:
    """A wave, how far it has come, and when the collectives of its last segment have arrived."""

    def __init__(self, wave: TimedWave) -> None:
        self.wave, self.segment, self.arrival = wave, 0, 0.0


class _Clock:
    def __init__(self, *, on_cpu: bool) -> None:
        self._on_cpu = on_cpu
        self._device = self._host = self._working = torch.zeros(1, dtype=torch.float64)
        self._links: dict[str, float] = {}
        self._sending = 0.0

    def go_on(self, turns: _Turns) -> bool:
        """Let a wave go on to its next pause; return whether it has one."""
        wave, segment = turns.wave, turns.segment
        work, launches = wave.work[wave.kinds, segment], wave.launches[wave.kinds, segment]
        start = self._device.clamp(min=turns.arrival)
        self._device = start + work
        if not self._on_cpu:
            self._host = self._host + launches
            self._device = torch.maximum(self._device, self._host)
        self._working = self._working + (self._device - start)
        turns.arrival = 0.0
        for link, seconds in wave.sending[segment]:
            begin = max(float(self._device.max()), self._links.get(link, 0.0))
            self._links[link] = begin + seconds
            turns.arrival = max(turns.arrival, begin + seconds)
            self._sending += seconds
            if self._on_cpu:
                self._device = self._device.clamp(min=begin) + seconds
        turns.segment += 1
        return turns.segment < len(wave.sending)

    def read(self) -> Course:
        return Course(float(self._device.max()), self._device, self._working, self._sending)
