"""Build the optimizer or optimizers of the whole model from a name in the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

import orthon
from orthon.algorithms import RULES
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
DEFAULT_FRACTION = 0.25  # how much of a matrix one update changes, where it does not change all
SECOND_BETA = 0.95  # for AdamW and Lion
EPS = 1e-8


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
        """Memory of the optimizers' state, in bytes."""
        states = (state for optimizer in self.each for state in optimizer.state.values())
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.each for group in optimizer.param_groups]


def build_optimizers(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> Optimizers:
    """The optimizers that the settings name.

    Args:
        model: Already divided among the ranks.
        config: Settings.
        seed: Of the run.
        ranks: Who takes part.

    Raises:
        UserError: The optimizer refuses one of `optimizer.options`.
    """
    try:
        return _BUILDERS[config.name](model, settle(config), seed, ranks)
    except (TypeError, ValueError) as error:
        raise _refused(config, error) from error


def refuse_torchs(config: OptimizerConfig, setting: str = "") -> None:
    """Raise a UserError that starts with the setting, for an optimizer of which no plan can be made."""
    if config.name == "torch-muon":
        raise UserError(f"{setting}torch-muon is PyTorch's own, and no plan can be made of it: write muon")


def build_mixed(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> orthon.MixedOptimizer:
    """The one optimizer of Orthon that updates as the settings say, of which plans can be made.

    Args:
        model: Already divided among the ranks.
        config: Settings.
        seed: Of the run.
        ranks: Who takes part.

    Raises:
        UserError: See `build_optimizers`; and for torch-muon, which is not Orthon's.
    """
    refuse_torchs(config)
    if config.name != "adamw":
        return cast(orthon.MixedOptimizer, build_optimizers(model, config, seed, ranks).each[0])
    # PyTorch's AdamW again, but called by Orthon.
    groups = orthon.param_groups(model, "adamw", "adamw", **_rates(config))
    try:
        return orthon.Dion(groups, **_adam_options(config) | {"seed": seed} | _arguments(config.options))
    except (TypeError, ValueError) as error:
        raise _refused(config, error) from error


def _refused(config: OptimizerConfig, error: Exception) -> UserError:
    """An error of a constructor. Orthon's AdamW and Lion are made by Dion, whose name would mislead."""
    message = " ".join(str(error).split())
    if config.name not in _CLASSES:
        message = message.removeprefix("Dion: ")
    return UserError(f"optimizer {config.name}: {message}")


def settle(config: OptimizerConfig) -> OptimizerConfig:
    """The same settings, with the defaults filled in that depend on the optimizer."""
    filled: dict[str, Any] = {"lr": full_lr(config)}
    setting = FRACTIONS.get(config.name)
    if setting is not None and getattr(config, setting) is None:
        filled[setting] = DEFAULT_FRACTION
    return config.model_copy(update=filled)


def full_lr(config: OptimizerConfig) -> float:
    """Learning rate of the hidden matrices before the schedule."""
    return DEFAULT_LR[config.name] if config.lr is None else config.lr


def _orthon(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> Optimizers:
    options: dict[str, Any] = _adam_options(config) | {"seed": seed, "momentum": config.momentum}
    if config.name in FRACTIONS:
        setting = FRACTIONS[config.name]
        options[setting] = getattr(config, setting)
    replicas = None
    # Weights that are also divided show by their DTensors that they are replicated, unless the optimizer averages.
    plain = ranks.size(SHARD) == ranks.size(TENSOR) == 1
    if ranks.mesh is not None and ranks.size(REPLICATE) > 1 and (plain or config.compressed_sync):
        replicas = ranks.mesh[REPLICATE].get_group()
        options |= {"replicas": replicas, "sync_gradients": config.compressed_sync}
    optimizer = _CLASSES[config.name].for_model(model, **_rates(config), **options | _arguments(config.options))
    return _collect(optimizer, unsynchronized=replicas if config.compressed_sync else None)


def _lion(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> Optimizers:  # noqa: ARG001
    groups = orthon.param_groups(model, "lion", "adamw", **_rates(config))
    options = _adam_options(config) | {"seed": seed} | _arguments(config.options)
    return _collect(orthon.Dion(groups, **options))


def _adamw(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> Optimizers:  # noqa: ARG001
    groups = orthon.param_groups(model, "adamw", "adamw", **_rates(config))
    options = _adam_options(config) | _arguments(config.options)
    return _collect(torch.optim.AdamW(groups, **options))


def _torch_muon(model: nn.Module, config: OptimizerConfig, seed: int, ranks: Processes) -> Optimizers:  # noqa: ARG001
    # Grouped as for Orthon's own rules: the same matrices for Muon, and the same AdamW for the rest.
    groups = orthon.param_groups(model, "muon", "adamw", **_rates(config))
    matrices = [group for group in groups if group["algorithm"] == "muon"]
    others = [group for group in groups if group["algorithm"] != "muon"]
    options: dict[str, Any] = {"momentum": config.momentum} | _arguments(config.options)
    return _collect(
        torch.optim.Muon(matrices, **options),
        torch.optim.AdamW(others, **_adam_options(config)),
    )


_CLASSES: dict[OptimizerName, Any] = {
    "dion": orthon.Dion,
    "dion2": orthon.Dion2,
    "dion3": orthon.Dion3,
    "muon": orthon.Muon,
    "normuon": orthon.NorMuon,
}

_BUILDERS = {**dict.fromkeys(_CLASSES, _orthon), "torch-muon": _torch_muon, "adamw": _adamw, "lion": _lion}


def _adam_options(config: OptimizerConfig) -> dict[str, Any]:
    return {"betas": (config.momentum, SECOND_BETA), "eps": EPS}


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as a constructor takes them: dtypes in place of their names, tuples in place of lists."""
    return {key: _argument(key, value) for key, value in options.items()}


def _argument(key: str, value: Any) -> Any:
    if key.endswith("_dtype"):  # bfloat16, or torch.bfloat16
        dtype = getattr(torch, str(value).removeprefix("torch."), None)
        return dtype if isinstance(dtype, torch.dtype) else value
    return tuple(value) if isinstance(value, list) else value


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
