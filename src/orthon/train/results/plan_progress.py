"""Show how far a plan or a measurement is: a bar in a terminal, nothing elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orthon.train.results.progress import Shown


class PlanProgress(Shown):
    """A bar over all plans inside a `with` block. Called, it says what is being done.

    Args:
        console: where to show it.
        total: number of parts; 0 if whoever calls it knows.
    """

    def __init__(self, console: Console, total: int) -> None:
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        super().__init__(bar)
        self._task = bar.add_task("", total=total or None)
        self._before = ""
        self._counts_itself = not total

    def part(self, name: str) -> None:
        """Begin a part: what is called from now on belongs to it."""
        self._before = f"{name}: " if name else ""
        self._bar.update(self._task, description=name)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Say that `done` of `total` steps of the present part are done, and what the next is."""
        if self._counts_itself:
            self._bar.update(self._task, total=total, completed=done)
        self._bar.update(self._task, description=f"{self._before}{what}")

    def end_part(self) -> None:
        """End a part."""
        self._bar.advance(self._task)
