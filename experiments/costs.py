"""What runs cost, in units of the demo run: LLaMA 1M, 300 steps of 8 sequences of 256 tokens."""

import statistics
from collections.abc import Container, Iterable, Mapping
from typing import Any

from experiments.cell import Cell
from experiments.entries import Entry, Experiment
from experiments.results import Found, Line
from experiments.workers import Crew

DEMO = Cell(optimizer="muon", lr=0.04, seed=0, steps=300, batch=8)

# Of the demo run on one thread of a server's CPU: for plans where no machine is at hand.
USUAL_SECONDS = 35.0

# Of wider models a token costs less than their weights say, as larger products run faster.
# Measured: 3.5 × the time for the 4 × larger 4M, 14 × for the 24 × larger 20M.
EXPONENT = 0.87

# Validations come on top of the training steps.
WITH_VALIDATION = 1.1

# How many learning rates a sweep takes: three, and often one more.
USUAL_SWEEP = 4

# Steps of the run that measures the speed where there are no data, and how many lines of data are looked at.
SHORT = 15
RECENT = 50


def units(cell: Cell) -> float:
    """Return what a run costs, in demo runs: its tokens times about the weights of its matrices."""
    wider: float = (cell.shape.matrix_weights / DEMO.shape.matrix_weights) ** EXPONENT
    return _tokens(cell) / _tokens(DEMO) * wider


def runs_of(entry: Entry, found: Found) -> int:
    """Return how many runs an entry takes in all, as far as can be told."""
    swept = max(1, len(entry.swept(found)))
    if entry.best(found) is None:
        swept = max(swept + 1, USUAL_SWEEP)
    return swept + len(entry.setting.seeds) - 1


def units_left(experiment: Experiment, found: Found, failed: Container[str] = ()) -> float:
    """Return what the missing runs of a set cost, in demo runs, as far as can be told.

    Args:
        experiment: the set.
        found: its data.
        failed: keys of runs that are not tried again. What depends on them is left out.
    """
    waiting = [
        entry for entry in _apart(experiment.entries) if any(cell.key not in failed for cell in entry.missing(found))
    ]
    return sum(_runs_left(entry, found) * units(entry.cell(0, 0)) for entry in waiting)


def units_of_all(experiments: Iterable[Experiment]) -> float:
    """Return what several sets cost together, in demo runs, if none has begun. They share runs."""
    every = [entry for experiment in experiments for entry in experiment.entries]
    return sum(runs_of(entry, {}) * units(entry.cell(0, 0)) for entry in _apart(every))


def seconds_per_unit(lines: Iterable[Line], where: Mapping[str, Any]) -> float | None:
    """Return the seconds of a demo run in one worker, from the latest runs on such a machine; None if there are none.

    Args:
        lines: of the data.
        where: this machine, as `whereabouts` has it.
    """
    here = [line for line in lines if _place(line.where) == _place(where) and not line.outcome.diverged]
    costs = [line.outcome.seconds / units(Cell(**line.settings)) for line in here[-RECENT:]]
    return WITH_VALIDATION * statistics.median(costs) if costs else None


def measured_seconds_per_unit(crew: Crew) -> float | None:
    """Return the seconds of a demo run on one thread, from a short run; None if it cannot be measured."""
    short = Cell(optimizer="muon", lr=0.04, seed=0, steps=SHORT, batch=8)
    crew.start(short)
    while True:
        for news in crew.wait():
            if news.ended:
                return WITH_VALIDATION * news.outcome.seconds / units(short) if news.outcome else None


def hours(count: float, seconds: float, workers: int) -> float:
    """Return the hours that units take, with seconds for each, on some workers."""
    return count * seconds / workers / 3600


def _runs_left(entry: Entry, found: Found) -> int:
    swept = entry.swept(found)
    best = entry.best(found)
    at_best = [] if best is None else [entry.cell(best, seed).key for seed in entry.setting.seeds[1:]]
    return max(0, runs_of(entry, found) - len(swept) - sum(key in found for key in at_best))


def _apart(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries without those whose runs are all in another one."""
    by_cell: dict[str, Entry] = {}
    for entry in entries:
        key = entry.cell(0, 0).key
        if key not in by_cell or runs_of(by_cell[key], {}) < runs_of(entry, {}):
            by_cell[key] = entry
    return list(by_cell.values())


def _place(where: Mapping[str, Any]) -> tuple[str, str]:
    return where["device"], where["machine"]["processor"]


def _tokens(cell: Cell) -> int:
    return cell.steps * cell.batch * cell.shape.context
