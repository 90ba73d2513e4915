"""Show the progress of a run: a bar in a terminal, a few lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from orthon.train.results.metrics import Record


@contextmanager
def make_progress(console: Console, step: int, steps: int) -> Iterator[Callable[[Record], None]]:
    """Show how far a run is inside a `with` block: a bar if the console is a terminal, else lines.

    Args:
        console: where to show it.
        step: number of steps already done.
        steps: number of all steps.

    Yields:
        A function that shows the newest record.
    """
    if console.is_terminal:
        with BarProgress(console, step, steps) as bar:
            yield bar.show
    else:
        yield LineProgress(console, steps).show


NUMBERS_WIDTH = 72  # characters beside the bar


class Shown:
    """Shows a bar inside a `with` block.

    Args:
        bar: the one.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class BarProgress(Shown):
    """One line that is written again and again. It fits into 80 columns."""

    def __init__(self, console: Console, step: int, steps: int) -> None:
        bar = Bar(
            BarColumn(bar_width=min(40, max(8, console.width - NUMBERS_WIDTH))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(),
            console=console,
        )
        super().__init__(bar)
        self._task = bar.add_task("", total=steps, completed=step, numbers="")
        self._val_loss: float | None = None

    def show(self, record: Record) -> None:
        """Move the bar. The last validation loss stays visible."""
        self._val_loss = self._val_loss if record.val_loss is None else record.val_loss
        self._bar.update(self._task, completed=record.step, numbers=_numbers(record, self._val_loss))


class LineProgress:
    """About ten lines in a run."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console, self._steps = console, steps
        self._tenth: int | None = None
        self._val_loss: float | None = None

    def show(self, record: Record) -> None:
        """Print the first record and the first one of each tenth of the run."""
        self._val_loss = self._val_loss if record.val_loss is None else record.val_loss
        tenth = 10 * record.step // self._steps
        if tenth != self._tenth:
            self._tenth = tenth
            left = record.seconds / record.step * (self._steps - record.step)
            self._console.print(
                f"{record.step}/{self._steps}  {_numbers(record, self._val_loss)}  {left:.0f} s left",
                soft_wrap=True,
            )


def _numbers(record: Record, val_loss: float | None) -> str:
    validation = "" if val_loss is None else f" val {val_loss:.2f}"
    speed = f"{record.tokens_per_second / 1e3:.1f}k tok/s"
    share = f"opt {record.optimizer_share:.0%}"
    return f"loss {record.loss:.2f}{validation} lr {record.lr:.1e} {speed} {share}"
