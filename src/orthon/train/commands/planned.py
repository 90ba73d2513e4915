"""The plans behind one table: on the mesh that is asked for, at other rank fractions, and on other numbers of GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

import orthon
from orthon.machines import Machine
from orthon.train.commands.comparison import parse_optimizer
from orthon.train.errors import UserError
from orthon.train.model.cluster import on_cluster
from orthon.train.model.on_meta import model_on_meta, weights_of_a_token
from orthon.train.processes.ranks import Processes
from orthon.train.results.plan_progress import PlanProgress
from orthon.train.settings.cluster import PlanConfig
from orthon.train.settings.optimizer import FRACTIONS, OptimizerConfig
from orthon.train.step.optimizers import build_mixed, refuse_torchs, settle

if TYPE_CHECKING:
    from orthon.plan.rows import Plan, PlanRow

# Those of the picture.
RANK_FRACTIONS = ("1", "1/4", "1/16", "1/64")

# From one number of GPUs to the next. The last one is so many times that which is asked for.
STRIDE = 4


@dataclass(frozen=True)
class Found:
    """All plans.

    Attributes:
        asked: on the mesh that is asked for.
        by_ranks: the rows of an optimizer by its word, on meshes of so many GPUs. Where a step does not fit, none.
        by_fraction: the rows on the mesh that is asked for, by the name of a rule, at rank fractions of it. A rule that
            has none has one row, at 1.
        least: the least mesh.dp_shard that has been tried on which an optimizer fits, by its word.
    """

    asked: "Plan"
    by_ranks: "Mapping[str, Mapping[int, PlanRow]]"
    by_fraction: "Mapping[str, Mapping[float, PlanRow]]"
    least: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        seconds = {
            word: {str(ranks): row.seconds for ranks, row in rows.items()} for word, rows in self.by_ranks.items()
        }
        fractions = {
            name: {str(fraction): row.seconds for fraction, row in rows.items()}
            for name, rows in self.by_fraction.items()
        }
        return {**self.asked.to_dict(), "seconds_by_ranks": seconds, "seconds_by_fraction": fractions}


class Planner:
    """Makes the plans.

    Args:
        config: settings.
        machine: for which to plan.

    Raises:
        UserError: a word is no optimizer, the mesh does not divide the model, or the model fits nowhere.
    """

    def __init__(self, config: PlanConfig, machine: Machine) -> None:
        self._config, self._machine = config, machine
        self._optimizers = {word: _optimizer(word) for word in config.optimizers}
        model = model_on_meta(config)
        self.weights = weights_of_a_token(model)
        self.name = f"LLaMA {config.model.name}" if config.config_json is None else type(model).__name__
        bytes_of_weights = sum(param.nbytes for param in model.parameters())
        # Weights and gradients alone. Embeddings and all else are divided, as far as it goes.
        self._bytes = 2 * bytes_of_weights
        self._meshes = self._tried()
        self._plans: dict[int, Plan] = {}  # by dp_shard

    def _tried(self) -> list[int]:
        """Return the dp_shards to plan for, in order, that which is asked for among them."""
        asked = self._config.mesh.dp_shard
        if not self._config.other_ranks:
            return [asked]
        shards = [asked, STRIDE * asked]
        while shards[0] % STRIDE == 0:
            shards.insert(0, shards[0] // STRIDE)
        enough = [count for count in shards if self._bytes / (count * self._config.mesh.tp) <= self._machine.memory]
        if not enough:
            raise UserError(
                f"{self.name} does not fit on {self._config.ranks} GPUs of {self._machine.name}, nor on {STRIDE} "
                f"times as many: weights and gradients take {self._bytes / 1e9:,.0f} GB; write --mesh.dp-shard "
                f"{self._least_for_weights()} or more"
            )
        return sorted({*enough, asked})

    def _least_for_weights(self) -> int:
        least = 1
        while self._bytes / (least * self._config.mesh.tp) > self._machine.memory:
            least *= 2
        return least

    @property
    def count(self) -> int:
        """Number of meshes to plan for."""
        return len(self._meshes) + (self._config.picture is not None)

    def asked(self, progress: PlanProgress) -> "Plan":
        """Plan for the mesh that is asked for."""
        shards = self._config.mesh.dp_shard
        if shards not in self._plans:
            self._plans[shards] = self._plan(shards, self._optimizers, progress)
        return self._plans[shards]

    def find(self, progress: PlanProgress) -> Found:
        """Make all plans.

        Raises:
            UserError: the model fits on none of the meshes.
        """
        asked, plans = self.asked(progress), self._plans
        for shards in self._meshes:
            if shards not in plans:
                plans[shards] = self._plan(shards, self._optimizers, progress)
        words = list(self._optimizers)
        by_ranks: dict[str, dict[int, PlanRow]] = {word: {} for word in words}
        least: dict[str, int] = {}
        for shards, made in sorted(plans.items()):
            for word, row in zip(words, made.rows, strict=True):
                if row.fits:
                    by_ranks[word][made.ranks] = row
                    least.setdefault(word, shards)
        if self._config.other_ranks and not least:
            largest = plans[max(plans)]
            smallest = min(largest.rows, key=lambda row: row.peak_bytes)
            raise UserError(
                f"{self.name} fits on no number of GPUs up to {largest.ranks}: there {smallest.optimizer} takes "
                f"{smallest.peak_bytes / 1e9:,.1f} GB of the {self._machine.memory / 1e9:,.0f} GB of "
                f"{self._machine.name}; write --mesh.tp {2 * self._config.mesh.tp}, a larger --mesh.dp-shard, or a "
                "--machine with more memory"
            )
        by_fraction = self._by_fraction(progress, asked) if self._config.picture is not None else {}
        return Found(asked, by_ranks, by_fraction, least)

    def _by_fraction(self, progress: PlanProgress, asked: "Plan") -> "dict[str, dict[float, PlanRow]]":
        """Return the rows of each rule at all rank fractions, on the mesh that is asked for."""
        rules = dict.fromkeys(config.name for config in self._optimizers.values() if config.name in FRACTIONS)
        found: dict[str, dict[float, PlanRow]] = {}
        for (word, config), row in zip(self._optimizers.items(), asked.rows, strict=True):
            fraction = getattr(config, FRACTIONS[config.name]) if config.name in rules else 1.0
            found.setdefault(config.name if config.name in rules else word, {})[fraction] = row
        wanted = [(name, fraction) for name in rules for fraction in RANK_FRACTIONS]
        missing = [f"{name}:{part}" for name, part in wanted if float(Fraction(part)) not in found[name]]
        if missing:
            optimizers = {word: _optimizer(word) for word in missing}
            made = self._plan(self._config.mesh.dp_shard, optimizers, progress, what="rank fractions")
            for config, row in zip(optimizers.values(), made.rows, strict=True):
                found[config.name][getattr(config, FRACTIONS[config.name])] = row
        return {name: dict(sorted(rows.items())) for name, rows in found.items()}

    def _plan(
        self, shards: int, optimizers: Mapping[str, OptimizerConfig], progress: PlanProgress, what: str = ""
    ) -> "Plan":
        from orthon.plan.planning import plan as make_plan

        copies, _, tensor = self._config.sizes
        progress.part(what or f"{copies * shards * tensor:,} GPUs")
        model = model_on_meta(self._config)
        with on_cluster(model, (copies, shards, tensor)) as ranks:
            builders = {word: partial(_build, config=config, ranks=ranks) for word, config in optimizers.items()}
            made = make_plan(model, builders, machine=self._machine, progress=progress)
        progress.end_part()
        return made


def _optimizer(word: str) -> OptimizerConfig:
    config = parse_optimizer(word, {})
    refuse_torchs(config, "optimizers: ")
    return settle(config)


def _build(model: nn.Module, *, config: OptimizerConfig, ranks: Processes) -> orthon.MixedOptimizer:
    return build_mixed(model, config, 0, ranks)
