"""The settings of the optimizer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from orthon.algorithms import RULES
from orthon.model.routing import SCALAR_LR
from orthon.train.settings.base import Fraction, Momentum, NotNegative, Positive, Settings
from orthon.train.settings.key_values import KeyValues

OptimizerName = Literal["dion", "dion2", "dion3", "muon", "normuon", "torch-muon", "adamw", "lion"]

# Tuned for the default run. Momentum 0.8 averages over about 5 steps, which suits a run of 300 steps. There, the 0.95
# that is usual in runs of thousands of steps costs Dion and Muon 0.15 to 0.2 nats, and 0.9 costs AdamW 0.07.
MOMENTUM = 0.8

# By optimizer: the setting that says how much of a matrix one update changes.
FRACTIONS: dict[OptimizerName, str] = {"dion": "rank_fraction", "dion2": "fraction", "dion3": "fraction"}

# What `optimizer.options` must not contain, and what sets it instead.
SET_ELSEWHERE = {
    **{
        name: f"it is set by optimizer.{name}"
        for name in ("lr", "scalar_lr", "weight_decay", "momentum", "rank_fraction", "fraction")
    },
    "seed": "the run's own seed is used",
    "replicas": "mesh and optimizer.compressed_sync set it",
    "sync_gradients": "mesh and optimizer.compressed_sync set it",
}


class OptimizerConfig(Settings):
    """The rule for the hidden matrices. AdamW updates the rest: embeddings, output head and norms."""

    name: OptimizerName = "dion"
    """'muon' is Orthon's own, 'torch-muon' is torch.optim.Muon."""
    lr: Positive | None = None
    """Learning rate of the hidden matrices. Default: one tuned for the 1M model."""
    scalar_lr: Positive = SCALAR_LR["adamw"]
    """Learning rate of AdamW on the rest."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay, times the learning rate. Embeddings, norms and biases have none."""
    momentum: Momentum = MOMENTUM
    """Momentum of the rules for matrices, and the first beta of AdamW and Lion. Long runs need more."""
    rank_fraction: Fraction | None = None
    """For 'dion': rank of the update, divided by the shorter side of the matrix. Default: 1/4."""
    fraction: Fraction | None = None
    """For 'dion2' and 'dion3': share of the rows that one update changes (with 'dion2' of the columns, if these
    are fewer). Default: 1/4."""
    compressed_sync: bool = False
    """Do not average gradients over mesh.dp_replicate: 'dion' without a tail averages its factors instead, 'dion2' and
    'dion3' the rows that they have drawn at random."""
    options: KeyValues = Field(default={})
    """More arguments for the optimizer's constructor, such as right_factor=orthonormalize or polar_steps=8."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        reasons = {
            "rank_fraction": "only dion has a rank",
            "fraction": "only dion2 and dion3 update a share of the rows",
        }
        for setting, reason in reasons.items():
            value = getattr(self, setting)
            if value is not None and FRACTIONS.get(self.name) != setting:
                raise ValueError(f"optimizer.{setting} is {value}, but {reason} and optimizer.name is {self.name}")
        if self.compressed_sync:
            self._check_compression()
        for key, reason in SET_ELSEWHERE.items():
            if key in self.options:
                raise ValueError(f"optimizer.options must not contain {key}: {reason}")
        return self

    def _check_compression(self) -> None:
        if self.name not in FRACTIONS:
            raise ValueError(
                "optimizer.compressed_sync is set, but only dion, dion2 and dion3 have it "
                f"and optimizer.name is {self.name}"
            )
        selection = self.options.get("selection", "global")
        if self.name != "dion" and selection != "random":
            raise ValueError(
                f"optimizer.compressed_sync is set, but {self.name} needs all gradients to choose its rows unless "
                f"optimizer.options has selection=random, and selection is {selection}"
            )
        tail = self.options.get("tail", RULES["dion"].options["tail"].default)
        if self.name == "dion" and tail:
            raise ValueError(
                "optimizer.compressed_sync is set, but the tail of dion's update needs all gradients in the momentum "
                f"unless optimizer.options has tail=0, and tail is {tail}; without a tail, error feedback serves dion "
                "best: tail=0 residual_momentum=1 nesterov=False right_factor=normalize"
            )
