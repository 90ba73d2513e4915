"""Crews for experiments that work in this process, on made-up losses or in earnest."""

import math
from collections.abc import Callable

from experiments.cell import Cell
from experiments.results import Outcome
from experiments.workers import News, Train, train_in_words


class Here:
    """A crew that trains one cell after the other in this process.

    Args:
        train: what it does.
    """

    def __init__(self, train: Train) -> None:
        self._train = train
        self._started: list[Cell] = []
        self.ended: list[Cell] = []

    def is_free(self) -> bool:
        return len(self._started) < 2

    def start(self, cell: Cell) -> None:
        self._started.append(cell)

    def wait(self) -> list[News]:
        cell = self._started.pop()  # not in the order in which they were started
        news = train_in_words(cell, self._train, lambda _: None)
        self.ended.append(cell)
        return [news]


class Unseen:
    """Watches nothing."""

    def see(self, news: News) -> None:
        del news


def made_up(best_lr: float, *, above: float = 0.0, diverges_from: float = math.inf) -> Train:
    """Return a training whose final loss is a parabola over the learning rate, and linear in the seed.

    Args:
        best_lr: where it is lowest.
        above: what fractions lose.
        diverges_from: the learning rate from which on a run diverges.
    """

    def train(cell: Cell, progress: Callable[[float], None]) -> Outcome:
        progress(1.0)
        loss = 1 + math.log2(cell.lr / best_lr) ** 2 + 0.1 * cell.seed + (above if cell.fraction else 0.0)
        losses = ((cell.steps // 2, loss + 1), (cell.steps, loss))
        return Outcome(held_out=losses, diverged=cell.lr >= diverges_from, seconds=1.0, optimizer_share=0.1)

    return train
