"""Results as tables for a terminal, and as a picture for the docs.

Run: python -m benchmarks.report benchmarks/results/cpu.json docs/benchmarks-cpu.png
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import ADAMW, TORCH_MUON
from benchmarks.results import Results, Row
from benchmarks.targets import Verdict

_HEADINGS = (
    "contender",
    "ms/step",
    "first ms",
    "µs/matrix",
    "/ torch Muon",
    "/ AdamW",
    "roofline ms",
    "% of it",
    "error",
    "MB beside",
    "note",
)


def console() -> Console:
    """Return a console that is wide enough for the tables, also where its output goes to a file."""
    return Console(width=180)


def print_rows(out: Console, rows: Sequence[Row]) -> None:
    """Print a table for each case and dtype, of rows in their order."""
    for (case, dtype), group in groupby(rows, key=lambda row: (row.case, row.dtype)):
        table = _table(f"{case}, {dtype}", _HEADINGS)
        for row in group:
            table.add_row(*_cells(row))
        out.print(table)


def print_lines(out: Console, title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print another table, with the names of its values above it."""
    headings = list(dict.fromkeys(key for line in lines for key in line))
    table = _table(title, [heading.replace("_", " ") for heading in headings])
    for line in lines:
        table.add_row(*(_text(line.get(heading)) for heading in headings))
    out.print(table)


def print_targets(out: Console, verdicts: Sequence[Verdict], *, small: bool) -> None:
    """Print what was asked for beside what was measured."""
    title = "targets" + (", at small sizes, where the figures say nothing" if small else "")
    table = _table(title, ("claim", "asked", "measured", "verdict"))
    for verdict in verdicts:
        table.add_row(verdict.claim, verdict.asked, _text(verdict.measured), verdict.verdict)
    out.print(table)


def print_all(out: Console, results: Results, verdicts: Sequence[Verdict], *, small: bool) -> None:
    """Print everything that a run has measured."""
    print_rows(out, results.rows)
    for title, lines in results.tables.items():
        print_lines(out, title, lines)
    print_lines(out, "this machine at best", [results.roofline])
    print_targets(out, verdicts, small=small)
    out.print(f"kept as {results.path}")


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Draw the step times of each case as bars, with the roofline as a mark on each.

    Args:
        data: of a results file.
        path: of the picture.

    Raises:
        ValueError: if nothing was measured.
    """
    rows = [row for row in data["rows"] if row["seconds"] is not None]
    if not rows:
        raise ValueError(f"data: there should be rows with seconds, but of {len(data['rows'])} there is none")
    cases = [(key, list(group)) for key, group in groupby(rows, key=lambda row: (row["case"], row["dtype"]))]
    heights = [len(group) + 2 for _, group in cases]
    style = {"axes.spines.right": False, "axes.spines.top": False, "font.size": 10.0}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 0.24 * sum(heights)), dpi=130, layout="constrained")
        panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, ((case, dtype), group) in zip(panels, cases, strict=True):
            places = range(len(group))
            axes.barh(places, [row["seconds"] * 1e3 for row in group], color="#1b6ca8", height=0.7)
            for place, row in zip(places, group, strict=True):
                if row["roofline_seconds"]:
                    axes.plot([row["roofline_seconds"] * 1e3] * 2, [place - 0.4, place + 0.4], color="#d1495b")
            axes.set_yticks(places, [row["contender"] for row in group])
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{case}, {dtype}: ms per step; the red mark is the roofline", loc="left", fontsize=10)
        machine = data["machine"].get("gpu") or f"{data['machine']['processor']}, {data['machine']['threads']} threads"
        figure.suptitle(f"{machine}, torch {data['versions']['torch']}, {data['date'][:10]}")
        figure.savefig(path)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings:
        left = heading in ("contender", "note", "claim", "verdict")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "note")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.contender,
        _text(_scaled(row.seconds, 1e3)),
        _text(_scaled(row.first_seconds, 1e3)),
        _text(_scaled(row.seconds, 1e6 / row.matrices)),
        _text(row.ratios.get(TORCH_MUON)),
        _text(row.ratios.get(ADAMW)),
        _text(_scaled(row.roofline_seconds, 1e3)),
        _text(_scaled(row.of_roofline, 100.0)),
        "" if row.error is None else f"{row.error:.1e}",
        _text(_scaled(row.peak_bytes, 1e-6)),
        row.note,
    )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _text(value: Any) -> str:
    """Return three digits of a number, other values as they are, and nothing for none."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a file of benchmarks/results")
    parser.add_argument("picture", type=Path, help="where to draw it, such as docs/benchmarks-cpu.png")
    given = parser.parse_args(arguments)
    draw(json.loads(given.results.read_text()), given.picture)


if __name__ == "__main__":
    main()
