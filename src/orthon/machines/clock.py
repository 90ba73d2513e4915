"""How long work takes on a device, undisturbed by others as far as that can be."""

import time
from collections.abc import Callable

import torch


class Clock:
    """Measures work on one device.

    On a CPU with one thread it reads the time that this process has had on its core, so that others who want the core
    do not count. With more threads, and on accelerators, it reads the time on the wall. The shortest of several runs
    counts: others can only make it longer.

    Args:
        device: on which the work is done.
        seconds: that one measurement may take, about.
    """

    def __init__(self, device: torch.device, *, seconds: float) -> None:
        self._device, self._seconds = device, seconds
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self._now = time.process_time if alone else time.perf_counter

    def shortest(self, work: Callable[[], object]) -> float:
        """Return the seconds of the shortest of three runs or more, after one that does not count.

        There are as many as fit into the time of a measurement: with many, some meet a quiet moment.
        """
        self._once(work)
        end = time.perf_counter() + self._seconds
        taken = [self._once(work) for _ in range(3)]
        while time.perf_counter() < end:
            taken.append(self._once(work))
        return min(taken)

    def _once(self, work: Callable[[], object]) -> float:
        wait(self._device)
        start = self._now()
        work()
        wait(self._device)
        return self._now() - start


def wait(device: torch.device) -> None:
    """Wait until a device has done what was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
