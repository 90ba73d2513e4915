"""Show how far the reading of a text is: a bar in a terminal, a few lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from orthon.train.results.progress import Shown

FIRST_LINE = 5.0  # seconds; a short text has no lines


@contextmanager
def text_progress(what: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Show how far it is inside a `with` block.

    Args:
        what: is done, in words.
        total: in any unit.
        console: where to show it.

    Yields:
        A function to call with how much more is done, in the same unit.
    """
    if console.is_terminal:
        with TextBar(what, total, console) as bar:
            yield bar.advance
    else:
        yield TextLines(what, total, console).advance


class TextBar(Shown):
    """One line that is written again and again."""

    def __init__(self, what: str, total: int, console: Console) -> None:
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        super().__init__(bar)
        self._task = bar.add_task(what, total=total)

    def advance(self, more: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, more)


class TextLines:
    """A line for each tenth, if it takes longer than a few seconds."""

    def __init__(self, what: str, total: int, console: Console) -> None:
        self._what, self._total, self._console = what, total, console
        self._done, self._tenth, self._start = 0, 0, time.monotonic()

    def advance(self, more: int) -> None:
        """Print a line if another tenth is done."""
        self._done += more
        tenth = 10 * self._done // max(self._total, 1)
        seconds = time.monotonic() - self._start
        if tenth > self._tenth and seconds > FIRST_LINE:
            self._tenth = tenth
            left = seconds / self._done * (self._total - self._done)
            self._console.print(f"{self._what}: {10 * tenth} %, {left:.0f} s left", soft_wrap=True, markup=False)
