"""Processes that train cells beside each other, each in one thread."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Protocol, Self

from experiments.cell import Cell
from experiments.place import Place
from experiments.results import Outcome

Train = Callable[[Cell, Callable[[float], None]], Outcome]


@dataclass(frozen=True)
class News:
    """What a worker tells.

    Attributes:
        cell: on which it works.
        done: the part of the run that is done.
        outcome: the numbers, if the run has ended.
        error: why it has failed, if it has.
    """

    cell: Cell
    done: float = 1.0
    outcome: Outcome | None = None
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether the worker is free again."""
        return self.outcome is not None or bool(self.error)


class Crew(Protocol):
    """Trains cells."""

    def is_free(self) -> bool:
        """Whether one more cell can be started at once."""

    def start(self, cell: Cell) -> None:
        """Start a cell."""

    def wait(self) -> Sequence[News]:
        """Wait until there is news, and return it. A cell must have been started and not have ended."""


def train_in_words(cell: Cell, train: Train, progress: Callable[[float], None]) -> News:
    """Train a cell. Any error is told, so that the other cells go on."""
    try:
        return News(cell, outcome=train(cell, progress))
    except Exception as error:
        return News(cell, error=f"{type(error).__name__}: {' '.join(str(error).split())}")


class Workers:
    """A crew of worker processes, inside a `with` block. At its end they are gone, whatever they were doing.

    Args:
        number: of processes.
        place: where they train.
    """

    def __init__(self, number: int, place: Place) -> None:
        # Not forked: a fork of a process that has used torch may hang.
        self._context = multiprocessing.get_context("spawn")
        self._number, self._place = number, place
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Cell]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.end()
        self._idle, self._busy = [], {}

    def is_free(self) -> bool:
        """Whether one more cell can be started at once."""
        return len(self._busy) < self._number

    def start(self, cell: Cell) -> None:
        """Start a cell."""
        worker = self._idle.pop() if self._idle else _Worker(self._context, self._place)
        worker.line.send(cell)
        self._busy[worker.line] = (worker, cell)

    def wait(self) -> list[News]:
        """Wait until there is news, and return it."""
        return [self._news(line) for line in wait(list(self._busy)) if isinstance(line, Connection)]

    def _news(self, line: Connection) -> News:
        worker, cell = self._busy[line]
        try:
            news: News = line.recv()
        except (EOFError, OSError):  # the process has died; another one will take its place
            worker.end()
            del self._busy[line]
            return News(cell, error=f"the worker process has died with exit code {worker.process.exitcode}")
        if news.ended:
            del self._busy[line]
            self._idle.append(worker)
        return news


class _Worker:
    """One process, and this end of the line to it."""

    def __init__(self, context: multiprocessing.context.SpawnContext, place: Place) -> None:
        self.line, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, place), daemon=True)
        # The process reads this when it loads torch, before it can be told anything else.
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            self.process.start()
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        other.close()

    def end(self) -> None:
        """End the process now."""
        self.process.terminate()
        self.process.join()
        self.line.close()


def _work(line: Connection, place: Place) -> None:
    """Train the cells that come along the line, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's affair, which ends this one
    import torch

    from experiments.training import train

    def trained(cell: Cell, progress: Callable[[float], None]) -> Outcome:
        return train(cell, progress, place)

    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            cell: Cell = line.recv()
            line.send(train_in_words(cell, trained, lambda done, cell=cell: line.send(News(cell, done))))  # type: ignore[misc]
