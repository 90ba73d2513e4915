"""Computations that pause where ranks communicate, and running several of them at once."""

from collections.abc import Generator, Iterable
from itertools import repeat
from typing import Any, TypeVar

from orthon.sharding.requests import Flight, Request, sent_together

T = TypeVar("T")

# A computation that hands over control where ranks communicate. It yields a request, or a list of requests that do not
# depend on each other, is sent the answer or the list of answers, and ends with a T.
Step = Generator[Any, Any, T]


def run(waves: Iterable[Iterable[Step[None]]], *, at_once: int) -> None:
    """Run computations to their ends, wave by wave, so that one wave computes while the requests of another travel.

    The computations of a wave go together: each goes on until it has a request, and then the requests of all travel in
    as few collectives as there are kinds. The waves under way take turns, the newest first. So the matrices of one wave
    arrive, and the results of another return, while a third computes. Whose turn it is depends on how often each has
    paused, never on which collective has arrived. So the order of collectives is the same on every rank.

    Args:
        waves: the computations of each wave. The next wave is taken only when it can start.
        at_once: how many waves are under way at the same time, each with its temporaries.
    """
    under_way: list[UnderWay] = []
    coming = iter(waves)
    while True:
        if len(under_way) < at_once and (steps := next(coming, None)) is not None:
            under_way.insert(0, UnderWay(steps))
        if not under_way:
            return
        under_way = list(filter(UnderWay.go_on, under_way))


class UnderWay:
    """The computations of a wave, which go together.

    Args:
        steps: the computations, in the same order on every rank.
    """

    def __init__(self, steps: Iterable[Step[None]]) -> None:
        self._waiting: list[tuple[Step[None], list[Request] | Request | None]] = list(zip(steps, repeat(None)))
        self._flights: list[Flight] = []

    def go_on(self) -> bool:
        """Let each computation go on with the answers to its requests until it has new ones, and send those.

        Returns:
            whether a computation has not come to its end.
        """
        while self._flights:
            self._flights.pop().land()  # so that its memory is free
        waiting, self._waiting, requests = self._waiting, [], list[Request]()
        for step, asked in waiting:
            answer = [request.answer() for request in asked] if isinstance(asked, list) else asked and asked.answer()
            try:
                asks = step.send(answer)
            except StopIteration:
                continue
            self._waiting.append((step, asks))
            requests += asks if isinstance(asks, list) else [asks]
        del waiting
        self._flights = sent_together(requests) if requests else []
        return bool(self._waiting)


def together(*steps: Step[Any]) -> Step[list[Any]]:
    """Return the results of computations that go side by side, so that their requests travel together."""
    results: list[Any] = [None] * len(steps)
    answers: dict[int, Any] = dict.fromkeys(range(len(steps)))
    while answers:
        asks: dict[int, list[Request] | Request] = {}
        for which, answer in answers.items():
            try:
                asks[which] = steps[which].send(answer)
            except StopIteration as end:
                results[which] = end.value
        if not asks:
            break
        flat = [request for each in asks.values() for request in (each if isinstance(each, list) else [each])]
        arrived = iter((yield flat))
        answers = {
            which: [next(arrived) for _ in each] if isinstance(each, list) else next(arrived)
            for which, each in asks.items()
        }
    return results
