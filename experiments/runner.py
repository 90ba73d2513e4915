"""Run what is missing of a set. The set says what that is, again after each run; the runner knows nothing of sets."""

from dataclasses import dataclass
from typing import Protocol

from experiments.book import Book
from experiments.cell import Cell
from experiments.entries import Experiment
from experiments.workers import Crew, News


@dataclass(frozen=True)
class Failure:
    """A run that has ended with an error."""

    cell: Cell
    error: str


class Watcher(Protocol):
    """Sees what the runner hears of its runs."""

    def see(self, news: News) -> None:
        """Take news of a run; what has ended is in the data already."""


def run(experiment: Experiment, crew: Crew, book: Book, watcher: Watcher) -> list[Failure]:
    """Run all that is missing, each run's numbers kept as soon as it ends.

    Returns:
        The runs that failed. They are not tried again, and what depends on them is left out.
    """
    running: set[str] = set()
    failed: dict[str, Failure] = {}
    while True:
        for cell in _waiting(experiment, book, running | failed.keys()):
            if not crew.is_free():
                break
            crew.start(cell)
            running.add(cell.key)
        if not running:
            return list(failed.values())
        for news in crew.wait():
            if news.ended:
                running.remove(news.cell.key)
            if news.outcome is not None:
                book.add(news.cell, news.outcome)
            elif news.error:
                failed[news.cell.key] = Failure(news.cell, news.error)
            watcher.see(news)


def _waiting(experiment: Experiment, book: Book, known: set[str]) -> list[Cell]:
    """Return the missing cells that are not known, and take over what another set has."""
    while True:
        missing = [cell for cell in experiment.missing(book.found) if cell.key not in known]
        waiting = [cell for cell in missing if not book.take_over(cell)]
        if len(waiting) == len(missing):
            return waiting
