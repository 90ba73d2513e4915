"""The runs of a comparison: one for each optimizer and learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from orthon.train.errors import UserError
from orthon.train.settings.base import check
from orthon.train.settings.nearest import did_you_mean
from orthon.train.settings.numbers import fraction as number_of
from orthon.train.settings.optimizer import FRACTIONS, OptimizerConfig, OptimizerName
from orthon.train.settings.run import CompareConfig, RunConfig, TrainConfig
from orthon.train.settings.shortened import shortened
from orthon.train.step.optimizers import full_lr, settle


@dataclass(frozen=True)
class Planned:
    """One run of a comparison."""

    label: str  # of the optimizer, as in the settings
    lr: float  # of the hidden matrices
    config: TrainConfig
    directory: Path


def plan(config: CompareConfig, directory: Path) -> list[Planned]:
    """Return all runs of a comparison. They differ in the rule for the hidden matrices and its learning rate alone.

    Raises:
        UserError: an optimizer is unknown, or has a fraction that it does not take.
    """
    shared = {name: getattr(config, name) for name in RunConfig.model_fields}
    same = {name: getattr(config, name) for name in ("scalar_lr", "momentum", "weight_decay")}
    planned = []
    for label in config.optimizers:
        base = settle(parse_optimizer(label, same))
        for factor in config.sweep:
            lr = factor * full_lr(base)
            if not 0 < lr < math.inf:
                raise UserError(f"sweep has {factor:g}, with which the learning rate of {label} would be {lr:g}")
            name = f"{label.replace(':', '-').replace('/', '_')}-lr{lr:g}"
            run = TrainConfig(**shared, optimizer=base.model_copy(update={"lr": lr}))
            planned.append(Planned(label, lr, run, directory / name))
    by_directory: dict[Path, Planned] = {}
    for one in planned:
        same_place = by_directory.setdefault(one.directory, one)
        if same_place is not one:
            raise UserError(
                f"two runs would be in {one.directory}, {same_place.label} with lr {same_place.lr!r} "
                f"and {one.label} with lr {one.lr!r}; leave out one"
            )
    return planned


def parse_optimizer(label: str, same: Mapping[str, Any]) -> OptimizerConfig:
    """Return the optimizer that `name` or `name:fraction` means; the fraction is written as 1/16 or 0.0625.

    Args:
        label: the word.
        same: settings that are the same for all.

    Raises:
        UserError: the label is neither, or the fraction is not allowed.
    """
    if "," in label or " " in label.strip():
        raise UserError(
            f"optimizers takes words with spaces between, as in dion:1/16 muon, but has {shortened(label)}; "
            "in a file they are [dion:1/16, muon]"
        )
    name, colon, fraction = label.partition(":")
    if name not in get_args(OptimizerName):
        raise UserError(
            f"optimizers must be of {', '.join(get_args(OptimizerName))} but has {shortened(label)}"
            + did_you_mean(name, get_args(OptimizerName))
        )
    settings: dict[str, Any] = {"name": name, **same}
    if colon:
        setting = FRACTIONS.get(name)  # type: ignore[call-overload]  # checked above
        if setting is None:
            raise UserError(f"optimizers takes a fraction for {', '.join(FRACTIONS)} alone but has {shortened(label)}")
        try:
            settings[setting] = float(number_of(fraction))
        except ValueError as error:
            raise UserError(f"optimizers takes a fraction such as {name}:1/16 but has {shortened(label)}") from error
    return check(OptimizerConfig, settings, under="optimizer")
