"""Plots of the losses of one run, and of several runs side by side."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orthon.saving.files import new_file
from orthon.train.results.metrics import Record

COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#7b4b94", "#555555", "#d985b8", "#2bb3c0")
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titleweight": "bold",
    "font.size": 11.0,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
LOSS = "loss (nats per token)"


def plot_run(path: Path, title: str, records: Sequence[Record]) -> None:
    """Plot training and validation loss of one run over its steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.8), dpi=140, layout="constrained")
        axes = figure.add_subplot()
        steps = [record.step for record in records]
        losses = [record.loss for record in records]
        axes.plot(steps, losses, color=COLORS[0], alpha=0.2, linewidth=0.8)
        axes.plot(steps, smooth(losses), color=COLORS[0], linewidth=1.8, label="training (smoothed)")
        measured = [(record.step, record.val_loss) for record in records if record.val_loss is not None]
        axes.plot(*zip(*measured, strict=True), color=COLORS[1], marker="o", markersize=4, label="held out")
        axes.set(title=title, xlabel="step", ylabel=LOSS)
        axes.legend(loc="upper right")
        save(figure, path)


def plot_comparison(path: Path, title: str, runs: dict[str, Sequence[Record]]) -> None:
    """Plot the validation losses of several runs, by label, over steps and over training time."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), dpi=140, layout="constrained")
        by_step, by_time = figure.subplots(1, 2, sharey=True)
        for number, (label, records) in enumerate(runs.items()):
            measured = [record for record in records if record.val_loss is not None]
            losses = [record.val_loss for record in measured]
            color, style = COLORS[number % len(COLORS)], ("-", "--", ":")[number // len(COLORS) % 3]
            for axes, places in (
                (by_step, [record.step for record in measured]),
                (by_time, [record.seconds for record in measured]),
            ):
                axes.plot(places, losses, style, color=color, marker="o", markersize=3.5, label=label)
        figure.suptitle(title, fontweight="bold")
        by_step.set(title="over steps", xlabel="step", ylabel=f"held-out {LOSS}")
        by_time.set(title="over time", xlabel="training time (s)")
        _from_second_validation(by_step, runs)
        by_step.legend(loc="upper right")
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture at once, in the format of the file's suffix."""
    with new_file(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png")


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average over about a thirtieth of the values, without bias at the beginning."""
    weight = 1 - 1 / max(1, len(values) / 30)
    total, norm, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _from_second_validation(axes: Axes, runs: dict[str, Sequence[Record]]) -> None:
    """Cut off the steep beginning, so that the differences at the end can be seen."""
    curves = [[record.val_loss for record in records if record.val_loss is not None] for records in runs.values()]
    if all(len(curve) > 4 for curve in curves):
        axes.set_ylim(top=max(curve[1] for curve in curves))
