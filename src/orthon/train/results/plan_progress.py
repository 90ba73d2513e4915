"""Show how far a plan or a measurement is: a bar in a terminal, nothing elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class PlanProgress:
    """A bar over all plans inside a `with` block. Called, it says what is being done.

    Args:
        console: Where to show it.
        total: Number of parts; 0 if whoever calls it knows.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total or None)
        self._before, self._now = "", 0
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

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
