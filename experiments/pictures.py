"""The answers of a set as pictures: differences over the settings, and losses over the learning rates."""

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.answers import Answer, answers
from experiments.entries import Experiment
from experiments.intervals import Difference
from experiments.results import Found
from orthon.train.results.plots import COLORS, STYLE

_LINES = ("-", "--", ":", "-.")
_DASH_AFTER = len(COLORS)
_MOST_LINES = 15  # that can be told apart
_MOST_IN_LEGEND = 20  # names beside a row of panels
_PANEL = 4.2  # inches
_WIDTH = 0.3  # of all the intervals in a setting, where the settings are 1 apart


def draw(experiment: Experiment, found: Found, folder: Path) -> list[Path]:
    """Draw what is known of a set; return the files."""
    known = {setting.name: answers(experiment, setting, found) for setting in experiment.settings}
    known = {name: given for name, given in known.items() if given}
    if not known:
        return []
    names = list(dict.fromkeys(entry.contender.name for entry in experiment.entries))
    styles = {name: (COLORS[i % _DASH_AFTER], _LINES[i // _DASH_AFTER % len(_LINES)]) for i, name in enumerate(names)}
    paths = [folder / f"{experiment.name}.png", folder / f"{experiment.name}-lr.png"]
    with matplotlib.rc_context(STYLE):
        if len(known) > 1 and len(names) <= _MOST_LINES:
            _differences(experiment, known, styles).savefig(paths[0])
        else:
            _differences_in_rows(experiment, known, names).savefig(paths[0])
        _sweeps(experiment, known, styles).savefig(paths[1])
    return paths


def _differences(experiment: Experiment, known: dict[str, list[Answer]], styles: dict[str, tuple[str, str]]) -> Figure:
    """Draw the difference to the baseline over the settings, a line for each optimizer."""
    figure = Figure(figsize=(10, 5.4), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (color, line)) in enumerate(styles.items()):
        found = {place: _difference_of(name, given) for place, given in enumerate(known.values())}
        points = {place: difference for place, difference in found.items() if difference is not None}
        if points:
            aside = _WIDTH * (number / len(styles) - 0.5)  # so that intervals do not lie on each other
            axes.errorbar(
                [place + aside for place in points],
                [difference.mean for difference in points.values()],
                [difference.half or 0.0 for difference in points.values()],
                color=color,
                linestyle=line,
                marker="o",
                capsize=3,
                label=name,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(known)), [name.replace(", ", ",\n") for name in known])
    axes.set_xlim(-0.5, len(known) - 0.5)
    axes.set(ylabel=_above(experiment))
    figure.suptitle(experiment.question, fontsize="medium")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure


def _differences_in_rows(experiment: Experiment, known: dict[str, list[Answer]], names: list[str]) -> Figure:
    """Draw the difference to the baseline, a row for each optimizer and a color for each setting."""
    rows = [name for name in reversed(names) if any(_difference_of(name, given) for given in known.values())]
    figure = Figure(figsize=(9, 1.5 + 0.27 * len(rows)), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for number, (setting, given) in enumerate(known.items()):
        found = {row: _difference_of(name, given) for row, name in enumerate(rows)}
        points = {row: difference for row, difference in found.items() if difference is not None}
        axes.errorbar(
            [difference.mean for difference in points.values()],
            [row + _WIDTH * (0.5 - (number + 0.5) / len(known)) for row in points],
            xerr=[difference.half or 0.0 for difference in points.values()],
            color=COLORS[number % len(COLORS)],
            linestyle="none",
            marker="o",
            capsize=3,
            label=setting,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(-1, len(rows))
    axes.set(xlabel=_above(experiment))
    if len(known) > 1:
        axes.legend(loc="lower right", fontsize="small")
    figure.suptitle(experiment.question, fontsize="medium")
    return figure


def _difference_of(name: str, given: list[Answer]) -> Difference | None:
    return next((answer.difference for answer in given if answer.entry.contender.name == name), None)


def _above(experiment: Experiment) -> str:
    return f"held-out loss above that of {experiment.baseline} (nats per token)"


def _sweeps(experiment: Experiment, known: dict[str, list[Answer]], styles: dict[str, tuple[str, str]]) -> Figure:
    """Draw the losses over the learning rates, a panel for each setting."""
    columns = min(3, len(known))
    rows = math.ceil(len(known) / columns)
    wide = math.ceil(len(styles) / _MOST_IN_LEGEND / rows)  # columns of the legend
    figure = Figure(figsize=(_PANEL * columns + 3 * wide, _PANEL * rows), dpi=110, layout="constrained")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (setting, given) in zip(panels, known.items(), strict=False):
        for answer in given:
            color, line = styles[answer.entry.contender.name]
            finite = [(lr, loss) for lr, loss in answer.sweep.items() if math.isfinite(loss)]
            axes.plot(*zip(*finite, strict=True), color=color, linestyle=line, marker="o", markersize=3.5)
        axes.set(title=setting, xscale="log", xlabel="learning rate", ylabel="held-out loss")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in panels[len(known) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=color, linestyle=line) for color, line in styles.values()]
    figure.legend(handles, list(styles), loc="outside right center", fontsize="small", ncols=wide)
    figure.suptitle(experiment.question)
    return figure
