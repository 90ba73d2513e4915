"""The settings of one run, and of a comparison of several runs."""

from typing import Annotated, Literal, Self

from cyclopts import Group, Parameter
from pydantic import model_validator

from orthon.model.routing import SCALAR_LR
from orthon.train.settings.base import (
    Count,
    CountOrZero,
    Momentum,
    NotNegative,
    Number,
    Positive,
    Seed,
    Settings,
    Share,
)
from orthon.train.settings.data import DataConfig
from orthon.train.settings.key_values import WORDS
from orthon.train.settings.mesh import MeshConfig
from orthon.train.settings.model import ModelConfig
from orthon.train.settings.optimizer import MOMENTUM, OptimizerConfig

DecayName = Literal["linear", "cosine", "constant"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "float32", "bf16"]

BIG_HIDDEN_SIZE = 2048  # that of the 1B model: from here on activations do not fit beside the weights


def section(name: str, kind: type[Settings]) -> Parameter:
    """Return a heading in the help of a command."""
    return Parameter(group=Group(name, help=kind.__doc__ or "", sort_key=name))


class ScheduleConfig(Settings):
    """How the learning rates move during the run."""

    warmup: Share = 0.05
    """Share of the steps in which they rise linearly to their full value."""
    decay: DecayName = "linear"
    """How they fall afterwards."""
    final: Share = 0.0
    """Factor on the learning rates that the decay reaches after the last step. 'constant' has none."""

    @model_validator(mode="after")
    def _check_final(self) -> Self:
        if self.decay == "constant" and self.final:
            raise ValueError(f"schedule.final is {self.final}, but schedule.decay constant does not decay")
        return self


class RunConfig(Settings):
    """What is trained, on what, and for how long: everything but the optimizer."""

    steps: Count = 300
    """Number of optimizer steps."""
    batch_size: Count = 8
    """Sequences in one optimizer step."""
    accumulation: Count = 1
    """Equal parts into which a batch is cut to save memory. Their gradients are added up."""
    activation_checkpointing: bool | None = None
    """Save memory: compute each layer's activations again in the backward pass. Default: from size 1B on."""
    clip: NotNegative = 1.0
    """Largest norm of the gradient of all weights that are not orthonormalized. 0: do not clip."""
    clip_matrices: bool = False
    """Clip the gradients of the orthonormalized matrices as well."""
    qk_clip: Positive | None = None
    """QK-clip: after each step, scale down the queries and keys of attention heads whose logits exceed this number,
    such as 100."""
    seed: Seed = 0
    """Seed of the weights, the order of the text, the optimizer and the sample."""
    device: DeviceName = "auto"
    """Where to train. 'auto': on a GPU if there is one."""
    precision: PrecisionName = "auto"
    """Precision of the products in the model. 'auto': bf16 on a GPU and float32 on a CPU."""
    log_every: Count = 1
    """Steps from one line of metrics to the next. Each line makes the CPU wait for the GPU once."""
    validate_every: Count = 25
    """Steps from one validation to the next. The last step always has one."""
    validation_sequences: Count = 64
    """Held-out sequences in one validation, spread evenly over the held-out text."""
    save_every: Count = 100
    """Steps from one checkpoint to the next. The last step always has one."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep."""
    sample_tokens: CountOrZero = 200
    """Length in tokens of the text that the model writes at the end. 0: none."""
    mesh: Annotated[MeshConfig, section("mesh", MeshConfig)] = MeshConfig()
    model: Annotated[ModelConfig, section("model", ModelConfig)] = ModelConfig()
    data: Annotated[DataConfig, section("data", DataConfig)] = DataConfig()
    schedule: Annotated[ScheduleConfig, section("schedule", ScheduleConfig)] = ScheduleConfig()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation must divide batch_size ({self.batch_size}) but is {self.accumulation}")
        if self.clip_matrices and not self.clip:
            raise ValueError("clip_matrices is set, but clip is 0 and clips nothing")
        room = self.model.shape.context - 1
        if self.sample_tokens > room:
            raise ValueError(
                f"sample_tokens must leave room for a prompt in model.context and be at most {room} "
                f"but is {self.sample_tokens}"
            )
        return self

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        given = self.activation_checkpointing
        return self.model.shape.hidden_size >= BIG_HIDDEN_SIZE if given is None else given


class TrainConfig(RunConfig):
    """One run."""

    optimizer: Annotated[OptimizerConfig, section("optimizer", OptimizerConfig)] = OptimizerConfig()


class CompareConfig(RunConfig):
    """Several runs that differ in their optimizer alone."""

    optimizers: Annotated[tuple[str, ...], WORDS] = ("dion", "muon", "adamw")
    """Names as in `orthon train`. 'dion:1/16' also sets optimizer.rank_fraction, 'dion2:1/2' optimizer.fraction."""
    sweep: Annotated[tuple[Positive, ...], WORDS] = (1.0,)
    """Factors on each optimizer's default learning rate. The best run of each optimizer counts."""
    scalar_lr: Positive = SCALAR_LR["adamw"]
    """Learning rate of AdamW on embeddings, output head and norms, the same for all."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay, times the learning rate, the same for all."""
    momentum: Momentum = MOMENTUM
    """Momentum of the rules for matrices, and the first beta of AdamW and Lion, the same for all."""
    target: Number | None = None
    """Loss for the column 'steps to', in nats per token. Default: AdamW's last validation loss, or the worst last one
    if there is no AdamW."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        for name in ("optimizers", "sweep"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name one or more, each once, but is {values}")
        return self
