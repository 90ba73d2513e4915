"""A picture of a plan: the time of a step over rank fractions, and over numbers of GPUs."""

from collections.abc import Mapping
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from orthon.plan.rows import PlanRow
from orthon.train.results.plots import COLORS, STYLE, save


def plot_plan(
    path: Path,
    title: str,
    by_fraction: Mapping[str, Mapping[float, PlanRow]],
    by_ranks: Mapping[str, Mapping[int, PlanRow]],
) -> None:
    """Plot the time of a step, a line for each optimizer.

    Args:
        path: file to write.
        title: above both plots.
        by_fraction: by optimizer and rank fraction. What has one alone has none, and becomes a level line.
        by_ranks: by optimizer and number of GPUs.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.4), dpi=140, layout="constrained")
        left, right = figure.subplots(1, 2)
        colors = dict(zip(by_ranks, cycle(COLORS)))
        _over_fractions(left, by_fraction, colors)
        for label, rows in by_ranks.items():
            milliseconds = [1e3 * row.seconds for row in rows.values()]
            right.plot(list(rows), milliseconds, color=colors[label], marker="o", markersize=4, label=label)
        figure.suptitle(title, fontweight="bold", parse_math=False)
        fractions = {fraction for rows in by_fraction.values() for fraction in rows}
        ranks = sorted({count for rows in by_ranks.values() for count in rows})
        _on_logarithms(left, "over the rank fraction", "rank fraction", {f: str(Fraction(f)) for f in fractions})
        _on_logarithms(right, "over the number of GPUs", "GPUs", {count: f"{count:,}" for count in ranks})
        left.set_ylabel("time of an optimizer step (ms)")
        save(figure, path)


def _over_fractions(axes: Axes, by_fraction: Mapping[str, Mapping[float, PlanRow]], colors: Mapping[str, str]) -> None:
    for label, rows in by_fraction.items():
        color = next(color for word, color in colors.items() if word.partition(":")[0] == label)
        milliseconds = [1e3 * row.seconds for row in rows.values()]
        if len(rows) > 1:
            axes.plot(list(rows), milliseconds, color=color, marker="o", markersize=4, label=label)
        else:
            axes.axhline(milliseconds[0], color=color, linestyle="--", label=label)


def _on_logarithms(axes: Axes, title: str, xlabel: str, ticks: Mapping[float, str]) -> None:
    axes.set(title=title, xlabel=xlabel)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    if ticks:
        axes.set_xticks(list(ticks), list(ticks.values()))
    if labels := axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=min(3, len(labels)))  # below: hides no line
