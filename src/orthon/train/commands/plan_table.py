"""The table of a plan: a line for each optimizer."""

from typing import TYPE_CHECKING

from orthon.explain.units import duration, operations, size
from orthon.train.commands.training_step import TrainingStep

if TYPE_CHECKING:
    from orthon.plan.rows import Plan, PlanRow

# Of two lines each.
HEADINGS = (
    ("", "optimizer"),
    ("time of", "a step"),
    ("of a", "whole step"),
    ("not", "hidden"),
    ("", "work"),
    ("memory", "traffic"),
    ("sent within", "a node"),
    ("sent between", "nodes"),
    ("", "collectives"),
    ("", "state"),
    ("peak", "memory"),
    ("", "fits"),
)


def plan_table(plan: "Plan", training: TrainingStep) -> str:
    """The table as text. Times are those of the slowest rank, everything else that of the busiest one."""
    lines = [*zip(*HEADINGS, strict=True), *(_cells(row, training) for row in plan.rows)]
    kept = [column for column in zip(*lines, strict=True) if any(column[2:])]
    widths = [max(map(len, column)) for column in kept]
    rows = list(zip(*kept, strict=True))
    rows.insert(2, tuple("─" * width for width in widths))
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def _cells(row: "PlanRow", training: TrainingStep) -> tuple[str, ...]:
    share = training.share(row)
    return (
        row.optimizer,
        duration(row.seconds),
        "" if share is None else f"{share:.2%}",
        duration(row.exposed) or "none",
        operations(row.work) or "none",
        size(row.traffic),
        size(row.wire.get("within node", 0.0)),
        size(row.wire.get("between nodes", 0.0)),
        str(row.collectives),
        size(row.state_bytes),
        size(row.peak_bytes),
        "yes" if row.fits else "no",
    )
