"""Computations that may pause, and running several of them at once."""

from collections import deque
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

# A computation that hands over control (yields) while a collective is in flight, and ends with a T.
Step = Generator[None, None, T]


def run(steps: Iterable[Step[None]], *, at_once: int) -> None:
    """Run computations in turn to their ends, so that one computes while the collectives of others are in flight.

    Whose turn it is depends on how often each has paused, never on which collective has arrived. So the order of
    collectives is the same on every rank.

    Args:
        steps: the computations. The next is taken only when it can start.
        at_once: how many are under way at the same time, each with its temporaries.
    """
    under_way: deque[Step[None]] = deque()
    coming = iter(steps)
    while True:
        while len(under_way) < at_once and (step := next(coming, None)) is not None:
            under_way.append(step)
        if not under_way:
            return
        step = under_way.popleft()
        try:
            next(step)
        except StopIteration:
            continue
        under_way.append(step)
