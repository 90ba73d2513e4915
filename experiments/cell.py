"""One run as plain data: everything that its numbers depend on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from orthon.train.settings.base import check
from orthon.train.settings.key_values import Scalar
from orthon.train.settings.model import ModelConfig, Shape, SizeName
from orthon.train.settings.optimizer import FRACTIONS, OptimizerName
from orthon.train.settings.run import DeviceName, PrecisionName, TrainConfig

# Tokens whose activations are in memory at once: a larger batch is cut into parts. This changes rounding alone.
PART = {"cpu": 8192, "cuda": 65536}

# A validation reads 64 sequences, forwards only, and so costs about as much as training on 20. With at least this many
# from one to the next, validations take at most a tenth of the time.
SEQUENCES_BETWEEN_VALIDATIONS = 200
MOST_VALIDATIONS = 40


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The settings of one run.

    Attributes:
        optimizer: of the hidden matrices, by its name in `orthon train`.
        lr: of the hidden matrices.
        seed: of the weights, the order of the text and the optimizer.
        steps: of the run.
        batch: sequences in one step.
        size: of the model, by its name in `orthon train`.
        momentum: of the rules for matrices, and the first beta of AdamW.
        fraction: the rank of Dion, or the share of the rows of Dion2 and Dion3; None for others.
        options: more arguments of the optimizer.
        model: single numbers of the model in place of those of `size`.
        scalar_lr: of the AdamW that updates the rest.
        weight_decay: decoupled, times lr.
        precision: of the products in the model.
    """

    optimizer: OptimizerName
    lr: float
    seed: int
    steps: int
    batch: int
    size: SizeName = "1M"
    momentum: float = 0.8
    fraction: float | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)
    model: Mapping[str, int] = field(default_factory=dict)
    scalar_lr: float = 0.003
    weight_decay: float = 0.01
    precision: PrecisionName = "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def key(self) -> str:
        """What makes this run the same as another one."""
        return key_of(self.settings)

    def __str__(self) -> str:
        usual = {each.name: each.default for each in fields(self)}
        given = {name: value for name, value in self.settings.items() if value != usual[name] and value != {}}
        return ", ".join(f"{name} {value}" for name, value in given.items())

    @property
    def shape(self) -> Shape:
        """The numbers that make the model."""
        return check(ModelConfig, {"size": self.size, **self.model}, under="model").shape

    @property
    def validate_every(self) -> int:
        """Steps from one measurement of the held-out loss to the next."""
        return max(-(-self.steps // MOST_VALIDATIONS), -(-SEQUENCES_BETWEEN_VALIDATIONS // self.batch))

    def config(self, device: DeviceName = "cpu") -> TrainConfig:
        """The trainer's settings for this run.

        Args:
            device: on which it runs.

        Raises:
            UserError: A value is not allowed.
        """
        optimizer = {
            "name": self.optimizer,
            "lr": self.lr,
            "scalar_lr": self.scalar_lr,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
            "options": dict(self.options),
        }
        if self.fraction is not None:
            optimizer[FRACTIONS.get(self.optimizer, "fraction")] = self.fraction
        return check(
            TrainConfig,
            {
                "steps": self.steps,
                "batch_size": self.batch,
                "accumulation": self._parts(device),
                "seed": self.seed,
                "device": device,
                "precision": self.precision,
                "validate_every": self.validate_every,
                "validation_sequences": 64,
                "sample_tokens": 0,
                "model": {"size": self.size, **self.model},
                "schedule": {"warmup": 0.05, "decay": "linear", "final": 0.0},
                "optimizer": optimizer,
            },
        )

    def _parts(self, device: DeviceName) -> int:
        """Return into how many equal parts the batch is cut."""
        fit = max(1, PART[device] // self.shape.context)
        return next(parts for parts in range(-(-self.batch // fit), self.batch + 1) if self.batch % parts == 0)


def key_of(settings: Mapping[str, Any]) -> str:
    """Return the settings of a run as one string, the same for the same settings."""
    return json.dumps(settings, sort_keys=True)
