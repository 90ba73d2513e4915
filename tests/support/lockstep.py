"""Ranks in one process, whose computations run in lock step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from orthon.linalg.row_ranks import Combine, Computation

T = TypeVar("T")


@dataclass
class Together:
    """What the ranks have said in the collective that is under way, and a note of all collectives.

    Attributes:
        size: how many ranks there are.
        notes: the kind of each collective, and the numbers that each rank gives to it.
    """

    size: int
    notes: list[tuple[str, list[int]]] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)


class LockstepRank:
    """One of the ranks, as `RowRanks` wants them."""

    def __init__(self, together: Together, index: int) -> None:
        self._together, self._index, self.size = together, index, together.size

    def sum(self, x: Tensor) -> Computation[Tensor]:
        return (yield from self._ask("sum", x, lambda parts: [torch.stack(parts).sum(0)] * self.size))

    def mine(self, count: int, *, turn: int = 0) -> slice:
        return self._of(self._index, count, turn)

    def reduce_matrices(self, x: Tensor, combine: Combine, *, turn: int = 0) -> Computation[Tensor]:
        def answer(parts: list[Tensor]) -> list[Tensor]:
            return [combine(torch.stack([x[self._of(i, len(x), turn)] for x in parts])) for i in range(self.size)]

        return (yield from self._ask("reduce", x, answer))

    def gather_matrices(self, x: Tensor, count: int, *, turn: int = 0) -> Computation[Tensor]:
        assert len(x) == len(range(count)[self.mine(count, turn=turn)])
        whole = yield from self._ask("gather", x, lambda parts: [torch.cat(parts)] * self.size)
        assert len(whole) == count
        return whole

    def _of(self, index: int, count: int, turn: int) -> slice:
        places = [(i - turn) % self.size for i in range(self.size)]  # from the rank where the dealing starts
        sizes = [count // self.size + (place < count % self.size) for place in places]
        return slice(sum(sizes[:index]), sum(sizes[: index + 1]))

    def _ask(self, kind: str, x: Tensor, answer: Callable[[list[Tensor]], list[Tensor]]) -> Computation[Tensor]:
        us = self._together
        us.said.append(x.clone())
        us.kinds.append(kind)
        assert us.kinds[0] == kind, f"ranks ask for different collectives: {us.kinds}"
        if len(us.said) == us.size:
            us.notes.append((kind, [part.numel() for part in us.said]))
            us.answers, us.said, us.kinds = answer(us.said), [], []
        yield
        return us.answers[self._index].clone()


def in_lockstep(
    make: Callable[[LockstepRank, int], Computation[T]], size: int
) -> tuple[list[T], list[tuple[str, list[int]]]]:
    """Return what the computation of each rank ends with, and the collectives with their numbers on each rank."""
    together = Together(size)
    running = [make(LockstepRank(together, index), index) for index in range(size)]
    results: list[T] = []
    while not results:
        for computation in running:
            try:
                next(computation)
            except StopIteration as end:
                results.append(end.value)
        assert len(results) in (0, size), "some ranks end before the others"
    return results, together.notes
