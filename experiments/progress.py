"""Show how far a set has come: a line for each run that has ended, and in a terminal a bar with the time left."""

import time
from collections.abc import Callable, Container

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments.cell import Cell
from experiments.costs import units
from experiments.results import Outcome
from experiments.workers import News
from orthon.train.results.progress import Shown


class SetProgress(Shown):
    """Shows the news of a sitting, inside a `with` block.

    Args:
        console: Where to show it.
        units_left: Returns what is missing, as far as can be told, given the keys of runs that failed; a run under
            way counts in full.
        seconds: Of a unit, on all workers together, as long as nothing has ended.
    """

    def __init__(self, console: Console, units_left: Callable[[Container[str]], float], seconds: float) -> None:
        self._console, self._units_left, self._seconds = console, units_left, seconds
        self._begun = time.monotonic()
        self._ended_units, self._runs = 0.0, 0
        self._under_way: dict[str, float] = {}  # units done, by key
        self._failed: set[str] = set()
        numbers = TextColumn("{task.fields[numbers]}")
        super().__init__(Progress(BarColumn(), numbers, console=console, disable=not console.is_terminal))
        self._task = self._bar.add_task("", total=units_left(()), numbers="")

    def see(self, news: News) -> None:
        """Take news of a run."""
        if news.ended:
            self._under_way.pop(news.cell.key, None)
            self._runs += 1
            if news.outcome:
                self._ended_units += units(news.cell)
            else:
                self._failed.add(news.cell.key)
        else:
            self._under_way[news.cell.key] = units(news.cell) * news.done
        done = self._ended_units + sum(self._under_way.values())
        left = max(0.0, self._units_left(self._failed) - sum(self._under_way.values()))
        elapsed = time.monotonic() - self._begun
        pace = elapsed / done if self._ended_units else self._seconds
        numbers = f"{self._runs} runs, {in_words(left * pace)} left"
        self._bar.update(self._task, completed=done, total=done + left, numbers=numbers)
        if news.ended:
            said = ended_line(news.cell, news.outcome) if news.outcome else f"FAILED: {news.error}: {news.cell}"
            self._console.print(f"{said}  ({numbers})", markup=False, soft_wrap=True)


def ended_line(cell: Cell, outcome: Outcome) -> str:
    """Return a run that has ended in one line."""
    result = "diverged" if outcome.diverged else f"{outcome.held_out[-1][1]:.4f}"
    return f"{result}  {outcome.seconds:.0f} s  {cell}"


def in_words(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
