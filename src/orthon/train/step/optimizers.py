"""Build the optimizer or optimizers of the whole model from a name in the settings."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

import orthon
from orthon.algorithms import RULES
from orthon.optimizers.by_name import class_of
from orthon.train.errors import UserError
from orthon.train.processes.ranks import REPLICATE, SHARD, TENSOR, Processes
from orthon.train.settings.optimizer import FRACTIONS, OptimizerConfig, OptimizerName

# Learning rates of the hidden matrices, tuned for the default run by factors of two.
DEFAULT_LR: dict[OptimizerName, float] = {
    "dion": 0.04,
    "dion2": 0.08,
    "dion3": 0.08,
    "muon": 0.04,
    "normuon": 0.04,
    "torch-muon": 0.04,
    "adamw": 0.003,
    "lion": 0.001,
}
SECOND_BETA = 0.95  # for AdamW and Lion


@dataclass(frozen=True)
class Optimizers:
    """The optimizers of one model, which are called together."""

    each: tuple[torch.optim.Optimizer, ...]
    matrices: tuple[Tensor, ...]  # parameters whose update is orthonormal
    others: tuple[Tensor, ...]
    unsynchronized: ProcessGroup | None = None  # the ranks whose gradients differ; the optimizer averages for itself

    def __post_init__(self) -> None:
        for group in self._groups():
            group.setdefault("initial_lr", group["lr"])

    def step(self) -> None:
        """Update every parameter."""
        for optimizer in self.each:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self.each:
            optimizer.zero_grad(set_to_none=True)

    def set_lr_factor(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its full value."""
        for group in self._groups():
            group["lr"] = group["initial_lr"] * factor

    def consolidate(self) -> None:
        """Make the state the same on all replicas, if their gradients differ. All ranks call it together."""
        if self.unsynchronized is not None:
            for optimizer in self.each:
                cast(Any, optimizer).consolidate()

    def state_bytes(self) -> int:
        """Return the memory of the optimizers' state, in bytes."""
        states = (state for optimizer in self.each for state in optimizer.state.values())
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.each for group in optimizer.param_groups]


def build_optimizers(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> Optimizers:
    """Return the optimizers that the settings name.

    Args:
        model: already divided among the ranks.
        config: settings.
        seed: of the run.
        ranks: who takes part.

    Raises:
        UserError: the optimizer refuses one of `optimizer.options`.
    """
    of_torch = OF_TORCH.get(config.name)
    if of_torch is not None:
        with _refusing(config):
            return _collect(*of_torch(model, config))
    optimizer = build_mixed(model, config, seed, ranks)
    return _collect(optimizer, unsynchronized=_replicas(config, ranks) if config.compressed_sync else None)


def refuse_torchs(config: OptimizerConfig, setting: str = "") -> None:
    """Raise a UserError that starts with the setting, for an optimizer of which no plan can be made."""
    if config.name == "torch-muon":
        raise UserError(f"{setting}torch-muon is PyTorch's own, and no plan can be made of it: write muon")


def build_mixed(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> orthon.MixedOptimizer:
    """Return the one optimizer of Orthon that updates as the settings say, of which plans can be made.

    For adamw it is PyTorch's AdamW again, but called by Orthon.

    Args:
        model: already divided among the ranks.
        config: settings.
        seed: of the run.
        ranks: who takes part.

    Raises:
        UserError: see `build_optimizers`; and for torch-muon, which is not Orthon's.
    """
    refuse_torchs(config)
    options = _adam_options(config) | {"scalar_algorithm": "adamw"}
    if RULES[config.name].work.takes_matrices:
        options |= {"momentum": config.momentum, "seed": seed}
        replicas = _replicas(config, ranks)
        if replicas is not None:
            options |= {"replicas": replicas, "sync_gradients": config.compressed_sync}
    if config.name in FRACTIONS:
        setting = FRACTIONS[config.name]
        options[setting] = getattr(settle(config), setting)
    with _refusing(config):
        return class_of(config.name).for_model(model, **_rates(config), **options | config.options)


@contextmanager
def _refusing(config: OptimizerConfig) -> Iterator[None]:
    """Make a UserError of what a constructor refuses."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {config.name}: {' '.join(str(error).split())}") from error


def settle(config: OptimizerConfig) -> OptimizerConfig:
    """Return the same settings, with the defaults filled in that depend on the optimizer."""
    filled: dict[str, Any] = {"lr": full_lr(config)}
    setting = FRACTIONS.get(config.name)
    if setting is not None and getattr(config, setting) is None:
        filled[setting] = RULES[config.name].options[setting].default
    return config.model_copy(update=filled)


def full_lr(config: OptimizerConfig) -> float:
    """Return the learning rate of the hidden matrices before the schedule."""
    return DEFAULT_LR[config.name] if config.lr is None else config.lr


def _replicas(config: OptimizerConfig, ranks: Processes) -> ProcessGroup | None:
    """Return the ranks of copies, where the weights do not tell, or where the optimizer averages their gradients."""
    if ranks.mesh is None or ranks.size(REPLICATE) == 1:
        return None
    divided = ranks.size(SHARD) > 1 or ranks.size(TENSOR) > 1  # the DTensors show that they are replicated
    return None if divided and not config.compressed_sync else ranks.mesh[REPLICATE].get_group()


def _adamw(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    groups = orthon.param_groups(model, "adamw", "adamw", **_rates(config))
    return [torch.optim.AdamW(groups, **_adam_options(config) | _tuples(config.options))]


def _torch_muon(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    # Grouped as for Orthon's own rules: the same matrices for Muon, and the same AdamW for the rest.
    groups = orthon.param_groups(model, "muon", "adamw", **_rates(config))
    matrices = [group for group in groups if group["algorithm"] == "muon"]
    others = [group for group in groups if group["algorithm"] != "muon"]
    options = {"momentum": config.momentum} | _tuples(config.options)
    return [torch.optim.Muon(matrices, **options), torch.optim.AdamW(others, **_adam_options(config))]


# PyTorch's own.
OF_TORCH: dict[OptimizerName, Callable[[nn.Module, OptimizerConfig], list[torch.optim.Optimizer]]] = {
    "torch-muon": _torch_muon,
    "adamw": _adamw,
}


def _adam_options(config: OptimizerConfig) -> dict[str, Any]:
    return {"betas": (config.momentum, SECOND_BETA)}


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as PyTorch's constructors take them: tuples in place of lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _rates(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": full_lr(config),
        "scalar_lr": config.scalar_lr,
        "weight_decay": config.weight_decay,
    }


def _collect(*optimizers: torch.optim.Optimizer, unsynchronized: ProcessGroup | None = None) -> Optimizers:
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            is_orthonormal = RULES[group["algorithm"]].work.takes_matrices
            (matrices if is_orthonormal else others).extend(group["params"])
    return Optimizers(each=optimizers, matrices=tuple(matrices), others=tuple(others), unsynchronized=unsynchronized)
