"""What the data of a set say: for each optimizer in each setting its best learning rate, losses and differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from experiments import sweep
from experiments.entries import Entry, Experiment, Setting
from experiments.intervals import Difference, paired
from experiments.results import Found, Line


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An optimizer in a setting, with its best learning rate.

    Attributes:
        entry: which ones.
        lr: the best one of the sweep.
        inside: whether a worse one was tried on each side.
        fitted_lr: where the parabola through the best loss and its neighbours is lowest; None if there is none.
        sweep: final held-out losses by learning rate, of the first seed; infinity where a run diverged.
        lines: the runs at the best learning rate, by seed.
        difference: of the final loss to the baseline's; None for the baseline itself, and where runs are missing.
        steps_to_target: where the mean held-out loss falls to the target; None if it does not, or there is no target.
    """

    entry: Entry
    lr: float
    inside: bool
    fitted_lr: float | None
    sweep: Mapping[float, float]
    lines: Mapping[int, Line]
    difference: Difference | None = None
    steps_to_target: float | None = None

    @property
    def loss(self) -> float:
        """The mean final held-out loss over the seeds."""
        return statistics.fmean(line.loss for line in self.lines.values())

    @property
    def optimizer_share(self) -> float:
        """The optimizer's share of the training time, the mean over the seeds."""
        return statistics.fmean(line.outcome.optimizer_share for line in self.lines.values())


def answers(experiment: Experiment, setting: Setting, found: Found) -> list[Answer]:
    """Return what is known in a setting, in the order of the table. Sweeps that have not ended count as they are."""
    known = [answer for entry in experiment.at(setting) if (answer := _alone(entry, found)) is not None]
    by_name = {answer.entry.contender.name: answer for answer in known}
    baseline, target = by_name.get(experiment.baseline), by_name.get(experiment.target or "")
    return [_compared(answer, baseline, target) for answer in known]


def pair_difference(known: Sequence[Answer], pair: tuple[str, str]) -> Difference | None:
    """Return the difference between two contenders in a setting, given by name; None if one is missing."""
    by_name = {answer.entry.contender.name: answer for answer in known}
    first, second = (by_name.get(name) for name in pair)
    return None if first is None or second is None else _difference(first, second)


def steps_to(target: float, curve: Sequence[tuple[int, float]]) -> float | None:
    """Return the step at which a curve of losses first falls to a target, between two measurements by a straight line.

    None if it does not, or if it is there at its first measurement already.
    """
    for (step, loss), (next_step, next_loss) in pairwise(curve):
        if next_loss <= target < loss:
            return step + (next_step - step) * (loss - target) / (loss - next_loss)
    return None


def mean_curve(lines: Sequence[Line]) -> list[tuple[int, float]]:
    """Return the mean held-out losses of runs over the steps that all have measured."""
    curves = [dict(line.outcome.held_out) for line in lines]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(step, statistics.fmean(curve[step] for curve in curves)) for step in steps]


def _alone(entry: Entry, found: Found) -> Answer | None:
    """Return an answer without what others have to do with it; None if no run has ended well."""
    losses = entry.swept(found)
    if not losses or all(map(math.isinf, losses.values())):
        return None
    best = sweep.best_of(losses)
    at_best = {seed: found.get(entry.cell(best, seed).key) for seed in entry.setting.seeds}
    bottom = sweep.bottom(losses)
    center = entry.contender.lr
    return Answer(
        entry=entry,
        lr=sweep.lr_at(center, best),
        inside=sweep.is_inside(losses),
        fitted_lr=None if bottom is None else center * math.sqrt(2) ** bottom,
        sweep={sweep.lr_at(center, k): losses[k] for k in sorted(losses)},
        lines={seed: line for seed, line in at_best.items() if line is not None},
    )


def _compared(answer: Answer, baseline: Answer | None, target: Answer | None) -> Answer:
    difference, steps = None, None
    if baseline is not None and answer is not baseline:
        difference = _difference(answer, baseline)
    if target is not None and math.isfinite(target.loss):
        steps = steps_to(target.loss, mean_curve(list(answer.lines.values())))
    return Answer(**{**vars(answer), "difference": difference, "steps_to_target": steps})


def _difference(answer: Answer, other: Answer) -> Difference | None:
    found = paired(*({seed: line.loss for seed, line in of.lines.items()} for of in (answer, other)))
    both = [(answer.lines[seed], other.lines[seed]) for seed in answer.lines.keys() & other.lines.keys()]
    mixed = any(first.processor != second.processor for first, second in both)
    return found and replace(found, mixed=mixed)
