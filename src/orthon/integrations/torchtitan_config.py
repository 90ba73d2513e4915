"""The optimizer section of torchtitan's job config, with Orthon's options as fields.

`job.custom_config_module = "orthon.integrations.torchtitan_config"` makes torchtitan take it instead of its own.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from functools import reduce
from operator import or_
from typing import Any, get_args

import torch
from torchtitan.config import Optimizer as TitansOptimizer

from orthon.algorithms import RULES
from orthon.model.asked import known_rule
from orthon.optimizers.by_name import class_of
from orthon.optimizers.common import NamedOptimizer
from orthon.optimizers.other_rules import default_scalar_algorithm

# Options that torchtitan's own fields set, that a config file cannot hold, or that belong to other trainers.
_ELSEWHERE = {"lr", "weight_decay", "betas", "beta2", "eps", "fused", "foreach"}
_NOT_HERE = {"view", "replicas", "sync_gradients", "others", "capturable"}

_PLAIN = (bool, int, float, str)


@dataclass
class _Section(TitansOptimizer):  # type: ignore[misc]
    """torchtitan's fields, of which None leaves the value to Orthon, and those of `for_model`.

    Attributes:
        name: of a rule, as `orthon.rules()` lists them. "Adam" and "AdamW" are torchtitan's own.
        lr: learning rate of the hidden matrices. With "adamw" or "lion", of the whole model.
        beta1: the first beta of AdamW or Lion on the rest.
        beta2: the second. NorMuon and Dion3 have an option beta2 for rows, which `train_spec(name, beta2=...)` sets.
        eps: of AdamW, and of the second moments of rows.
        weight_decay: of matrices and heads, times lr.
        scalar_algorithm: what updates the rest, "adamw" or "lion". None is AdamW, and Lion beside Lion.
        scalar_lr: learning rate of the rest.
        scalar_lr_ratio: scalar_lr over lr, instead of scalar_lr.
        per_head: whether each attention head is a matrix of its own.
    """

    name: str = "dion"
    lr: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    scalar_algorithm: str | None = None
    scalar_lr: float | None = None
    scalar_lr_ratio: float | None = None
    per_head: bool = False


def _options() -> dict[str, Any]:
    """Return the types of all options that a config file can hold, by name."""
    found: dict[str, Any] = {}
    for rule, parts in RULES.items():
        if parts.work.takes_matrices:
            for name, parameter in inspect.signature(class_of(rule)).parameters.items():
                if (kind := _kind(parameter.annotation)) is not None:
                    found.setdefault(name, kind | None)
    return {name: kind for name, kind in found.items() if name not in _ELSEWHERE | _NOT_HERE}


def _kind(annotation: Any) -> Any:
    """Return what of a type a config file can hold; None if it is nothing. Dtypes are written as words."""
    kinds = get_args(annotation) or (annotation,)
    plain = [kind for kind in kinds if kind in _PLAIN]
    return reduce(or_, plain) if plain else str if torch.dtype in kinds else None


OPTIONS = _options()
"""The options that are fields here, with their types. None leaves them to the optimizer."""

Optimizer = make_dataclass("Optimizer", [(n, kind, None) for n, kind in OPTIONS.items()], bases=(_Section,))


@dataclass
class JobConfig:
    """What `job.custom_config_module` adds to torchtitan's job config."""

    optimizer: Optimizer = field(default_factory=Optimizer)  # type: ignore[valid-type]


def optimizer_class(config: Any) -> type[NamedOptimizer]:
    """Return the class of Orthon's that a section names, or raise a ValueError that names the setting."""
    return class_of(config.name, "optimizer.name")


def arguments(config: Any) -> dict[str, Any]:
    """Return the keyword arguments for `for_model` that a section says, one of torchtitan's own or one with options.

    Raises:
        ValueError: for a name or a scalar_algorithm that no rule has.
    """
    said = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) is not None}
    known = {"lr", "weight_decay", "eps", "scalar_lr", "scalar_lr_ratio", "per_head", *OPTIONS}
    found = {name: value for name, value in said.items() if name in known}
    scalar = default_scalar_algorithm(optimizer_class(config))
    if "scalar_algorithm" in said:
        scalar = known_rule("optimizer.scalar_algorithm", said["scalar_algorithm"], elementwise=True)
        found["scalar_algorithm"] = scalar
    if "beta1" in said or "beta2" in said:
        usual = RULES[scalar if "betas" in RULES[scalar].options else "adamw"].options["betas"].default
        found["betas"] = said.get("beta1", usual[0]), said.get("beta2", usual[1])
    implementation = said["implementation"]
    return found | {"fused": implementation == "fused", "foreach": implementation == "foreach"}


def of_torchtitan(config: Any) -> Any:
    """Return a section as torchtitan's own optimizers take it.

    Raises:
        ValueError: for an option of Orthon's that is set, which they would not use.
    """
    own = {f.name: getattr(config, f.name) for f in fields(TitansOptimizer)}
    unused = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in own}
    usual: Mapping[str, Any] = {f.name: f.default for f in fields(config)}
    if changed := [name for name, value in unused.items() if value != usual[name]]:
        raise ValueError(f"optimizer.name is {config.name!r}, torchtitan's own, which does not take {changed[0]!r}")
    return TitansOptimizer(**{name: value for name, value in own.items() if value is not None})
