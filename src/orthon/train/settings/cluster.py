"""The settings of a plan: a model and a mesh that are not here."""

from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

from cyclopts import Parameter
from pydantic import BeforeValidator, Field, model_validator

from orthon.train.settings.base import Count, Fraction, Positive, Settings
from orthon.train.settings.data import MOST_TOKENS
from orthon.train.settings.key_values import WORDS
from orthon.train.settings.mesh import MeshConfig
from orthon.train.settings.model import ModelConfig
from orthon.train.settings.numbers import whole
from orthon.train.settings.optimizer import OptimizerConfig
from orthon.train.settings.paths import AnyPath, path_for
from orthon.train.settings.run import section
from orthon.train.settings.shortened import shortened

# That of LLaMA 3.
VOCABULARY = 128256

MEASURE = "measure"  # a machine that is this one
PICTURES = (".png", ".pdf", ".svg")


MOST_RANKS = 2**17  # explain takes a minute for them, and plan longer, as it also looks at 4 times as many

Vocabulary = Annotated[int, BeforeValidator(whole), Field(ge=1, le=MOST_TOKENS)]


class ClusterMesh(MeshConfig):
    """How the processes, one for each GPU, would share the work. The product of the three is their number."""

    dp_replicate: Count = 1
    """Copies of the model, each with its own part of the batch."""


class ClusterConfig(Settings):
    """What would be trained, and where."""

    config_json: AnyPath | None = None
    """Configuration file of a model of Hugging Face's transformers, config.json, or the folder that has it; in place of
    --model. Nothing is downloaded, and no code of the folder runs."""
    vocabulary: Vocabulary = VOCABULARY
    """Number of different tokens of the --model."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the weights, the gradients and the momentum."""
    machine: str = "h100"
    """Where it would be trained: a name of the table in docs/machines.md, or a YAML file with such figures."""
    model: Annotated[ModelConfig, section("model", ModelConfig)] = ModelConfig()
    mesh: Annotated[ClusterMesh, section("mesh", ClusterMesh)] = ClusterMesh()

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.config_json is not None:
            given = "model" if self.model != ModelConfig() else "vocabulary" if self.vocabulary != VOCABULARY else ""
            if given:
                raise ValueError(f"config_json gives the whole model: leave out --{given}, or --config-json")
        return self

    @model_validator(mode="after")
    def _check_mesh(self) -> Self:
        if self.ranks > MOST_RANKS:
            raise ValueError(
                f"mesh.dp_replicate × mesh.dp_shard × mesh.tp must be at most {MOST_RANKS:,} processes "
                f"but is {self.ranks:,}"
            )
        return self

    @property
    def sizes(self) -> tuple[int, int, int]:
        """dp_replicate, dp_shard and tp."""
        return self.mesh.dp_replicate, self.mesh.dp_shard, self.mesh.tp

    @property
    def ranks(self) -> int:
        """The number of processes, one for each GPU."""
        return prod(self.sizes)


class ExplainConfig(ClusterConfig):
    """What would be trained, where, and with which optimizer."""

    optimizer: Annotated[OptimizerConfig, section("optimizer", OptimizerConfig)] = OptimizerConfig()


class PlanConfig(ClusterConfig):
    """What would be trained, where, with which optimizers, and how long the rest of a step takes."""

    machine: str = "h100"
    """Where it would be trained: a name of the table in docs/machines.md, or a YAML file with such figures. 'measure':
    measure this machine, and write --machine-file."""
    machine_file: AnyPath = Path("machine.yaml")
    """File that --machine measure writes."""
    optimizers: Annotated[tuple[str, ...], WORDS] = ("dion:1/4", "dion:1/16", "dion:1/64", "muon", "dion2:1/4", "adamw")
    """Names as in `orthon train`. 'dion:1/16' also sets the rank fraction, 'dion2:1/2' the fraction."""
    step_seconds: Positive | None = None
    """Seconds of a training step without the optimizer, if they are known."""
    tokens_per_step: Count | None = None
    """Tokens in one training step of all processes together, to estimate its time."""
    utilization: Fraction = 0.67
    """For that estimate, the part of the machine's bfloat16 rate that training reaches. That rate is what large
    products reach, 60 % of a GPU's data sheet, so that 0.67 is 40 % of the data sheet."""
    recompute: bool = False
    """For that estimate, activations are computed again in the backward pass: 8 operations for each weight and token
    instead of 6."""
    other_ranks: bool = True
    """Also plan for other numbers of GPUs, by mesh.dp_shard, to tell where one optimizer overtakes another."""
    json_file: Annotated[Path | None, path_for("json"), Parameter(name="--json")] = Field(default=None)
    """File for all figures."""
    picture: AnyPath | None = None
    """File for a picture: time over the rank fraction, and over the number of GPUs."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        if not self.optimizers or len(set(self.optimizers)) < len(self.optimizers):
            raise ValueError(f"optimizers must name one or more, each once, but is {self.optimizers}")
        if self.picture is not None and self.picture.suffix not in PICTURES:
            raise ValueError(f"picture must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]} but is {self.picture}")
        if self.step_seconds is not None and self.tokens_per_step is not None:
            raise ValueError("step_seconds and tokens_per_step both give the time of a step: leave out one")
        for name in ("utilization", "recompute"):
            if self.tokens_per_step is None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for the estimate from tokens_per_step: leave it out, or give that")
        if self.machine != MEASURE and self.machine_file != type(self).model_fields["machine_file"].default:
            raise ValueError(f"machine_file is what machine {MEASURE} writes, but machine is {shortened(self.machine)}")
        return self
