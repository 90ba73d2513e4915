"""The results of a comparison, as a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from orthon.train.results.directory import Summary, replace_file
from orthon.train.results.metrics import Record

WIDEST = 1000  # columns that a table may have


@dataclass(frozen=True)
class Result:
    """One complete run."""

    label: str
    lr: float
    summary: Summary
    records: Sequence[Record]


def best_of_each(results: Sequence[Result]) -> list[Result]:
    """Return for each optimizer the run with the lowest last validation loss. The order of the optimizers stays."""
    best: dict[str, Result] = {}
    for result in results:
        if result.label not in best or result.summary.val_loss < best[result.label].summary.val_loss:
            best[result.label] = result
    return list(best.values())


def target_loss(best: Sequence[Result]) -> float:
    """Return the last validation loss of AdamW. Without AdamW, or if it failed: the worst last loss."""
    losses = {result.label: result.summary.val_loss for result in best}
    reached = [loss for loss in losses.values() if math.isfinite(loss)]
    adamw = losses.get("adamw", math.inf)
    return adamw if math.isfinite(adamw) else max(reached, default=math.inf)


def steps_to(records: Sequence[Record], target: float) -> int | None:
    """Return the first step whose validation loss is at most `target`, or None."""
    for record in records:
        if record.val_loss is not None and record.val_loss <= target:
            return record.step
    return None


def show_table(console: Console, best: Sequence[Result], target: float) -> None:
    """Show the table. In a terminal that is too narrow for it, its lines go on below."""
    table = comparison_table(best, target)
    before = console.width
    console.width = max(before, console.measure(table, options=console.options.update(width=WIDEST)).maximum)
    console.print(table)
    console.width = before


def comparison_table(best: Sequence[Result], target: float) -> Table:
    """Return the table, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(_headings(target)):
        # On two lines, so that the columns stay narrow.
        words = heading.rsplit(" ", 1)
        table.add_column("\n".join(words), justify="right" if number else "left", no_wrap=True)
    for row in _rows(best, target):
        table.add_row(*row)
    return table


def sweep_lines(results: Sequence[Result]) -> list[str]:
    """Return a line for each optimizer with several learning rates: the last validation loss of each rate."""
    lines = []
    for label in dict.fromkeys(result.label for result in results):
        runs = [result for result in results if result.label == label]
        if len(runs) > 1:
            losses = ", ".join(f"{run.summary.val_loss:.4f} at {run.lr:g}" for run in runs)
            lines.append(f"{label}: {losses}")
    return lines


def write_markdown(path: Path, best: Sequence[Result], target: float) -> None:
    """Write the table as Markdown."""
    headings = _headings(target)
    ruler = ["---", *["---:"] * (len(headings) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, ruler, *_rows(best, target))]
    replace_file(path, "\n".join(lines) + "\n")


def _headings(target: float) -> list[str]:
    return [
        "optimizer",
        "best lr",
        "held-out loss",
        f"steps to {target:.3f}",
        "training time",
        "optimizer share",
        "optimizer state",
    ]


def _rows(best: Sequence[Result], target: float) -> list[list[str]]:
    rows = []
    for result in best:
        summary, steps = result.summary, steps_to(result.records, target)
        failed = not math.isfinite(summary.val_loss)
        rows.append(
            [
                result.label,
                f"{result.lr:g}",
                "failed" if failed else f"{summary.val_loss:.4f}",
                "—" if steps is None else str(steps),
                f"{summary.seconds:.1f} s",
                "—" if failed else f"{summary.optimizer_share:.1%}",
                f"{summary.state_bytes / 1e6:.2f} MB",
            ]
        )
    return rows
