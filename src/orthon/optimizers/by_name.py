"""Optimizers by the names of their rules, as programs choose them that read the name from a config."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from orthon.algorithms import RULES
from orthon.model.routing import SCALAR_LR
from orthon.optimizers.common import NamedOptimizer
from orthon.optimizers.dion import Dion
from orthon.optimizers.dion2 import Dion2
from orthon.optimizers.dion3 import Dion3
from orthon.optimizers.mixed import Params
from orthon.optimizers.muon import Muon
from orthon.optimizers.normuon import NorMuon

# Rules that have a second name.
ALIASES = {"nordion2": "dion3"}

_TITLES = {"adamw": "AdamW"}

_CLASSES: dict[str, type[NamedOptimizer]] = {cls.algorithm: cls for cls in (Dion, Muon, NorMuon, Dion2, Dion3)}


class _OfOtherRule(NamedOptimizer):
    """What the optimizers are made of whose rule has no class of its own."""

    def __init__(self, params: Params, lr: float | Tensor, **options: Any) -> None:
        super().__init__(params, lr, options)


def rules() -> list[str]:
    """Return the names that `create` takes, those of registered rules among them, in the order of the alphabet."""
    return sorted({*RULES, *ALIASES})


def class_of(name: str) -> type[NamedOptimizer]:
    """Return the class of optimizers that a rule has. Upper and lower case are the same where that is no ambiguity.

    A rule from outside, AdamW and Lion get a class that is named after them.

    Raises:
        TypeError: for a name that is no string.
        ValueError: for a name that no rule has; it tells the nearest ones.
    """
    rule = _rule(name)
    if rule not in _CLASSES:
        title = _TITLES.get(rule) or "".join(word[:1].upper() + word[1:] for word in rule.split("_"))
        _CLASSES[rule] = type(title, (_OfOtherRule,), {"algorithm": rule, "__doc__": f"The rule {rule!r}."})
    return _CLASSES[rule]


def create(
    name: str,
    model: nn.Module,
    lr: float | Tensor | None = None,
    *,
    scalar_algorithm: str = "adamw",
    scalar_lr: float | Tensor | None = None,
    scalar_lr_ratio: float | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    per_head: bool = False,
    **options: Any,
) -> NamedOptimizer:
    """Return an optimizer for a model by the name of its rule: `orthon.create("dion", model, lr=0.02)`.

    It is `orthon.Dion.for_model(model, lr=0.02)`: the rule updates the hidden matrices, and another one the rest. It
    takes a model and no list of parameters, because a list does not tell what is an embedding. For a list there is the
    class, as in `orthon.Dion(params)`.

    Args:
        name: of a rule, one of `orthon.rules()`, such as "dion" or "muon". Upper case counts as lower case.
        model: any module.
        lr: learning rate of the hidden matrices. None is the default of the rule, and 0.003 for AdamW and 0.0003 for
            Lion on a whole model.
        scalar_algorithm: as in `for_model`.
        scalar_lr: as in `for_model`.
        scalar_lr_ratio: as in `for_model`.
        overrides: as in `for_model`.
        per_head: as in `for_model`.
        options: of the rule, and those of `orthon.optimizers.CommonOptions`.

    Raises:
        TypeError: for an option that the optimizer does not have, or a model that is none; they tell what there is.
        ValueError: for a name that no rule has, and for values that are not allowed.
    """
    cls = class_of(name)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"create: model should be a torch.nn.Module, but is a {type(model).__name__}; for a list of parameters "
            f"call the class, as in orthon.Dion(params, others='adamw')"
        )
    if lr is None:
        lr = SCALAR_LR.get(cls.algorithm, RULES[cls.algorithm].options["lr"].default)
    return cls.for_model(
        model,
        lr,
        scalar_algorithm=scalar_algorithm,
        scalar_lr=scalar_lr,
        scalar_lr_ratio=scalar_lr_ratio,
        overrides=overrides,
        per_head=per_head,
        **options,
    )


def _rule(name: str) -> str:
    """Return the name of the rule that is meant, or raise an error that tells the nearest ones."""
    if not isinstance(name, str):
        raise TypeError(f"create: name should be one of {', '.join(map(repr, rules()))}, but is {name!r}")
    for rule in (name, name.lower(), ALIASES.get(name.lower())):
        if rule is not None and rule in RULES:
            return rule
    near = get_close_matches(name.lower(), rules(), 2)
    meant = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"create: name should be one of {', '.join(map(repr, rules()))}, but is {name!r}{meant}")
