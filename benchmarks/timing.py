"""Seconds of work: in turns on a CPU, in a row by a GPU's own events."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice

import torch

Work = Callable[[], object]

# What is measured is repeated at least so often, however long it takes: the median of three has an outlier to spare.
LEAST = 3


def synchronize(device: torch.device) -> None:
    """Wait until a device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(work: Work, device: torch.device) -> float:
    """Return the seconds of one call, until the device has finished, as the host sees it."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def in_turns(works: Mapping[str, Work], *, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of each call, on a CPU: one of each work, again and again.

    So a drift of the machine's speed meets all of them, and each finds its memory as cold as the others.

    Args:
        works: by name.
        repeats: of each.
        seconds: for all together. No round begins after that, but for the first `LEAST`.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    for number in range(repeats):
        if number >= LEAST and time.perf_counter() > end:
            break
        for name, work in works.items():
            taken[name].append(once(work, torch.device("cpu")))
    return taken


def in_a_row(works: Sequence[Work], device: torch.device, *, repeats: int, seconds: float) -> list[float]:
    """Return the seconds of each call, one after the other without a pause.

    On a GPU the host runs ahead where nothing stops it, so that what it prepares hides behind the device, as in
    training; what the device waits for counts.

    Args:
        works: called in turn: the same on other memory, so that together they are larger than the cache.
        device: on which they work.
        repeats: of all together.
        seconds: for all together, by the time of one call; at least `LEAST` calls are made.
    """
    one = once(works[0], device)  # also warms up
    repeats = max(LEAST, min(repeats, int(seconds / one)))
    if device.type != "cuda":
        return [once(work, device) for work in islice(cycle(works), repeats)]
    events = []
    for work in islice(cycle(works), repeats):
        start, end = _event(), _event()
        start.record()
        work()
        end.record()
        events.append((start, end))
    synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def copies_beyond_cache(nbytes: int, device: torch.device) -> int:
    """Return how many times memory is needed, to be used in turn, so that none of it is in a GPU's cache again.

    On a CPU one is enough: the caches are those of a machine on which other works have their turn in between.

    Args:
        nbytes: that one call touches.
        device: on which it does.
    """
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, -(-2 * cache // nbytes))


class Budget:
    """A time that several works share.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds until it is spent."""
        return max(0.0, self._end - time.perf_counter())


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Put into the list how many bytes more than before were allocated at once, within; nothing on a CPU."""
    found: list[int] = []
    if device.type != "cuda":
        yield found
        return
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    synchronize(device)
    found.append(torch.cuda.max_memory_allocated(device) - before)
