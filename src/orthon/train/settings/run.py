"""Every setting of the trainer, with its meaning, its default and what it may be."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from orthon.train.errors import UserError
from orthon.train.settings.key_values import KeyValues
from orthon.train.settings.model_sizes import SIZES, Shape, SizeName

SourceName = Literal["stdlib", "text", "hf", "shards"]
OptimizerName = Literal["dion", "dion2", "dion3", "muon", "normuon", "torch-muon", "adamw", "lion"]
DecayName = Literal["linear", "cosine", "constant"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "float32", "bf16"]

# Tuned for the default run. Momentum 0.8 averages over about 5 steps, which suits a run of 300: the 0.95 that is
# usual in runs of thousands of steps cost Dion and Muon 0.15 to 0.2 nats there, and 0.9 cost AdamW 0.07.
SCALAR_LR = 0.003
MOMENTUM = 0.8

# By optimizer: the setting of how much of a matrix one update covers.
FRACTIONS: dict[OptimizerName, str] = {"dion": "rank_fraction", "dion2": "fraction", "dion3": "fraction"}

BIG_HIDDEN_SIZE = 2048  # that of the 1B model: from here on activations do not fit beside the weights


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The LLaMA to train. Single numbers override those of the size."""

    size: SizeName = "1M"
    """Named shape; the name counts the hidden matrices."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    layers: int | None = None
    """Number of layers."""
    heads: int | None = None
    """Attention heads; they divide the hidden size."""
    kv_heads: int | None = None
    """Key and value heads; they divide the heads."""
    ffn: int | None = None
    """Inner width of the feed-forward blocks."""
    context: int | None = None
    """Tokens in one training sequence."""

    def __post_init__(self) -> None:
        _one_of("model.size", self.size, tuple(SIZES))
        shape = self.shape
        for entry in fields(Shape):
            _at_least(f"model.{entry.name}", getattr(shape, entry.name), 1)
        if shape.hidden_size % (2 * shape.heads):
            raise UserError(
                f"model.hidden_size must be an even multiple of model.heads ({shape.heads}) but is {shape.hidden_size}"
            )
        if shape.heads % shape.kv_heads:
            raise UserError(f"model.kv_heads must divide model.heads ({shape.heads}) but is {shape.kv_heads}")

    @property
    def shape(self) -> Shape:
        """The numbers of the size, with the overrides applied."""
        numbers = {}
        for entry in fields(Shape):
            override = getattr(self, entry.name)
            numbers[entry.name] = getattr(SIZES[self.size], entry.name) if override is None else override
        return Shape(**numbers)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text. All sources but 'shards' read bytes as tokens and hold about 5 % out for validation."""

    source: SourceName = "stdlib"
    """'stdlib': Python's; 'text': files; 'hf': a Hugging Face data set; 'shards': .bin files of tokens."""
    paths: tuple[str, ...] = ()
    """Files or directories of 'text' and 'shards'. Shards with 'val' in their name are held out."""
    name: str | None = None
    """'hf': name of the data set, such as 'roneneldan/TinyStories'."""
    subset: str | None = None
    """'hf': configuration of the data set, where it has several."""
    split: str = "train"
    """'hf': split to read."""
    text_column: str = "text"
    """'hf': column that holds the text."""
    vocab_size: int | None = None
    """'shards': number of different tokens; if not given, 50304: GPT-2's, rounded up."""

    def __post_init__(self) -> None:
        _one_of("data.source", self.source, ("stdlib", "text", "hf", "shards"))
        used_by = {
            "paths": ("text", "shards"),
            "name": ("hf",),
            "subset": ("hf",),
            "split": ("hf",),
            "text_column": ("hf",),
            "vocab_size": ("shards",),
        }
        for entry in fields(self):
            sources = used_by.get(entry.name, (self.source,))
            if getattr(self, entry.name) != entry.default and self.source not in sources:
                raise UserError(
                    f"data.{entry.name} is {getattr(self, entry.name)!r}, but only data.source "
                    f"{' or '.join(sources)} uses it and data.source is {self.source}"
                )
        if self.source in used_by["paths"] and not self.paths:
            raise UserError(f"data.paths must name files or directories for data.source {self.source}")
        if self.source == "hf" and not self.name:
            raise UserError("data.name must name a data set for data.source hf")
        if self.vocab_size is not None and not 1 <= self.vocab_size <= 65536:
            raise UserError(f"data.vocab_size must be from 1 to 65536 but is {self.vocab_size}")
        # A run may be continued from another working directory.
        object.__setattr__(self, "paths", tuple(str(Path(path).absolute()) for path in self.paths))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The rule for the hidden matrices; AdamW is its companion for embeddings, output head and norms."""

    name: OptimizerName = "dion"
    """'muon' is Orthon's own, 'torch-muon' is torch.optim.Muon."""
    lr: float | None = None
    """Learning rate of the hidden matrices; if not given, one tuned for the 1M model."""
    scalar_lr: float = SCALAR_LR
    """Learning rate of the companion."""
    weight_decay: float = 0.01
    """Decoupled weight decay, times the learning rate; embeddings, norms and biases have none."""
    momentum: float = MOMENTUM
    """Of the rules for matrices, and the first beta of AdamW and Lion; long runs want more."""
    rank_fraction: float | None = None
    """'dion': rank of the update over the shorter side of the matrix; if not given, 1/4."""
    fraction: float | None = None
    """'dion2' and 'dion3': share of the rows, or columns if these are fewer, in one update; if not given, 1/4."""
    compressed_sync: bool = False
    """Leave gradients apart over mesh.dp_replicate: 'dion' averages factors, 'dion2' and 'dion3' random rows."""
    options: KeyValues = field(default_factory=dict)
    """More arguments of the optimizer's constructor, such as right_factor=orthonormalize or polar_steps=8."""

    def __post_init__(self) -> None:
        _one_of("optimizer.name", self.name, get_args(OptimizerName))
        _positive("optimizer.lr", self.lr)
        _positive("optimizer.scalar_lr", self.scalar_lr)
        _at_least("optimizer.weight_decay", self.weight_decay, 0)
        self._check_fraction("rank_fraction", "only dion has a rank")
        self._check_fraction("fraction", "only dion2 and dion3 update a share of the rows")
        if self.compressed_sync:
            self._check_compression()
        _momentum("optimizer.momentum", self.momentum)
        for key in ("lr", "scalar_lr", "weight_decay", "momentum", "rank_fraction", "fraction"):
            if key in self.options:
                raise UserError(f"optimizer.options must not contain {key}: it is set by optimizer.{key}")
        if "seed" in self.options:
            raise UserError("optimizer.options must not contain seed: the run's own seed is used")
        for key in ("replicas", "sync_gradients"):
            if key in self.options:
                raise UserError(f"optimizer.options must not contain {key}: mesh and optimizer.compressed_sync set it")

    def _check_fraction(self, setting: str, reason: str) -> None:
        value = getattr(self, setting)
        if value is None:
            return
        if FRACTIONS.get(self.name) != setting:
            raise UserError(f"optimizer.{setting} is {value}, but {reason} and optimizer.name is {self.name}")
        if not 0 < value <= 1:
            raise UserError(f"optimizer.{setting} must be in (0, 1] but is {value}")

    def _check_compression(self) -> None:
        if self.name not in FRACTIONS:
            raise UserError(
                "optimizer.compressed_sync is set, but only dion, dion2 and dion3 have it "
                f"and optimizer.name is {self.name}"
            )
        if self.name == "dion":
            return
        selection = self.options.get("selection", "global")
        if selection != "random":
            raise UserError(
                f"optimizer.compressed_sync is set, but {self.name} needs all gradients to choose its rows unless "
                f"optimizer.options has selection=random, and selection is {selection}"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rates move during the run."""

    warmup: float = 0.05
    """Share of the steps in which they rise linearly to their full value."""
    decay: DecayName = "linear"
    """How they fall afterwards."""
    final: float = 0.0
    """Factor that the decay ends at, after the last step; 'constant' has none."""

    def __post_init__(self) -> None:
        _one_of("schedule.decay", self.decay, ("linear", "cosine", "constant"))
        if not 0 <= self.warmup <= 1:
            raise UserError(f"schedule.warmup must be in [0, 1] but is {self.warmup}")
        if not 0 <= self.final <= 1:
            raise UserError(f"schedule.final must be in [0, 1] but is {self.final}")
        if self.decay == "constant" and self.final:
            raise UserError(f"schedule.final is {self.final}, but schedule.decay constant does not decay")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the processes that torchrun starts share the work; the product of the three is their number."""

    dp_replicate: int | None = None
    """Copies of the model, each with its part of the batch; if not given, as many as there are processes for."""
    dp_shard: int = 1
    """Ranks that divide the weights of a copy, each with its part of the batch (FSDP)."""
    tp: int = 1
    """Ranks that divide the products of each layer, on the same part of the batch (tensor parallelism)."""

    def __post_init__(self) -> None:
        if self.dp_replicate is not None:
            _at_least("mesh.dp_replicate", self.dp_replicate, 1)
        _at_least("mesh.dp_shard", self.dp_shard, 1)
        _at_least("mesh.tp", self.tp, 1)

    def sizes(self, processes: int) -> tuple[int, int, int]:
        """dp_replicate, dp_shard and tp for a number of processes.

        Raises:
            UserError: Their product is another.
        """
        copies = max(processes // (self.dp_shard * self.tp), 1) if self.dp_replicate is None else self.dp_replicate
        product = copies * self.dp_shard * self.tp
        if product != processes:
            raise UserError(
                f"mesh.dp_replicate × mesh.dp_shard × mesh.tp ({copies} × {self.dp_shard} × {self.tp}) must be "
                f"the number of processes but is {product}, and torchrun has started {processes}"
                if processes > 1
                else f"mesh.dp_replicate × mesh.dp_shard × mesh.tp ({copies} × {self.dp_shard} × {self.tp}) takes "
                f"{product} processes, but this is the only one: torchrun --nproc-per-node {product} -m orthon …"
            )
        return copies, self.dp_shard, self.tp


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What is trained, on what, for how long; all but the optimizer."""

    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences in one optimizer step."""
    accumulation: int = 1
    """Equal parts into which a batch is cut to save memory; their gradients are added up."""
    activation_checkpointing: bool | None = None
    """Compute each layer's activations again in the backward pass, to save memory; if not given, from 1B on."""
    clip: float = 1.0
    """Largest norm of the gradient of what is not orthonormalized; 0 clips nothing."""
    clip_matrices: bool = False
    """Clip the gradients of orthonormalized matrices as well."""
    qk_clip: float | None = None
    """After each step, scale queries and keys of heads whose attention logits exceed this, such as 100 (QK-clip)."""
    seed: int = 0
    """Seed of weights, order of the text, optimizer and sample."""
    device: DeviceName = "auto"
    """Where to train; 'auto' takes a GPU if there is one."""
    precision: PrecisionName = "auto"
    """Of the products in the model; 'auto' is bf16 on a GPU and float32 on a CPU."""
    log_every: int = 1
    """Steps from one line of metrics to the next; each makes a GPU wait for the CPU once."""
    validate_every: int = 25
    """Steps from one validation to the next; the last step always has one."""
    validation_sequences: int = 64
    """Held-out sequences in one validation, spread evenly over the held-out text."""
    save_every: int = 100
    """Steps from one checkpoint to the next; the last step always has one."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    sample_tokens: int = 200
    """Length of the text generated at the end, in tokens; 0 generates none."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        _one_of("precision", self.precision, ("auto", "float32", "bf16"))
        for name in ("steps", "batch_size", "accumulation", "log_every", "validate_every", "save_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("validation_sequences", "keep_checkpoints"):
            _at_least(name, getattr(self, name), 1)
        for name in ("clip", "seed", "sample_tokens"):
            _at_least(name, getattr(self, name), 0)
        if self.batch_size % self.accumulation:
            raise UserError(f"accumulation must divide batch_size ({self.batch_size}) but is {self.accumulation}")
        if self.clip_matrices and not self.clip:
            raise UserError("clip_matrices is set, but clip is 0 and clips nothing")
        _positive("qk_clip", self.qk_clip)
        room = self.model.shape.context - 1
        if self.sample_tokens > room:
            raise UserError(
                f"sample_tokens must leave room for a prompt in model.context and be at most {room} "
                f"but is {self.sample_tokens}"
            )

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        given = self.activation_checkpointing
        return self.model.shape.hidden_size >= BIG_HIDDEN_SIZE if given is None else given


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One run."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(RunConfig):
    """Several runs that differ in their optimizer alone."""

    optimizers: tuple[str, ...] = ("dion", "torch-muon", "adamw")
    """Names as in `orthon train`; 'dion:1/16' sets optimizer.rank_fraction, 'dion2:1/2' optimizer.fraction."""
    sweep: tuple[float, ...] = (1.0,)
    """Factors on each optimizer's default learning rate; the best run of each counts."""
    scalar_lr: float = SCALAR_LR
    """Learning rate of AdamW on embeddings, output head and norms, the same for all."""
    weight_decay: float = 0.01
    """Decoupled weight decay, times the learning rate, the same for all."""
    momentum: float = MOMENTUM
    """Of the rules for matrices, and the first beta of AdamW and Lion, the same for all."""
    target: float | None = None
    """Validation loss for 'steps to', in nats per token; if not given, AdamW's last, else the worst last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("scalar_lr", self.scalar_lr)
        _at_least("weight_decay", self.weight_decay, 0)
        _momentum("momentum", self.momentum)
        for name in ("optimizers", "sweep"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"{name} must name one or more, each once, but is {values}")
        for factor in self.sweep:
            _positive("sweep", factor)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)} but is {value!r}")


def _at_least(name: str, value: float, least: int) -> None:
    if not (value >= least and math.isfinite(value)):
        raise UserError(f"{name} must be at least {least} but is {value}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} must be above 0 but is {value}")


def _momentum(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} must be in [0, 1) but is {value}")
