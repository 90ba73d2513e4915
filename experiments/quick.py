"""The quick form of a set: the same optimizers and settings, in models of half the width and depth, and few steps."""

import math
from collections.abc import Callable
from dataclasses import replace

from experiments.costs import USUAL_SECONDS, units_of_all
from experiments.entries import Entry, Experiment, Setting
from orthon.train.settings.base import check
from orthon.train.settings.model import ModelConfig

# On two cores; a part of the ten minutes is for starting, and for small models, which are slower than their size says.
SECONDS = 2 * 360
FEWEST_STEPS = 8


def quick(experiment: Experiment) -> Experiment:
    """Return the set in at most ten minutes of two cores: two seeds, no sweep, small models, and steps that fit."""
    if experiment.device == "cuda":
        experiment = resized(experiment, lambda setting: replace(setting, size="1M"))
    small = resized(experiment, _halved)
    factor = min(1.0, SECONDS / USUAL_SECONDS / units_of_all([small]))

    def shorter(setting: Setting) -> Setting:
        return replace(setting, steps=max(FEWEST_STEPS, math.floor(setting.steps * factor)))

    return resized(replace(small, name=f"{experiment.name}-quick", shown="difference"), shorter)


def resized(experiment: Experiment, change: Callable[[Setting], Setting]) -> Experiment:
    """Return a set with other settings.

    Args:
        experiment: the set.
        change: returns a setting in place of another one.
    """
    entries = tuple(Entry(entry.contender, change(entry.setting)) for entry in experiment.entries)
    return replace(experiment, entries=entries)


def _halved(setting: Setting) -> Setting:
    shape = check(ModelConfig, {"size": setting.size, **setting.model}).shape
    model = {
        **setting.model,
        "hidden_size": shape.hidden_size // 2,
        "ffn": shape.ffn // 2,
        "layers": max(1, shape.layers // 2),
    }
    return replace(setting, model=model, seeds=setting.seeds[:2], sweeps=False)
