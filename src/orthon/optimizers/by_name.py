"""Optimizers by the names of their rules, as programs choose them that read the name from a config."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from orthon.algorithms import RULES
from orthon.algorithms.rule import ALIASES
from orthon.model.asked import check_model, known_rule, meant
from orthon.optimizers.common import NamedOptimizer
from orthon.optimizers.dion import Dion
from orthon.optimizers.dion2 import Dion2
from orthon.optimizers.dion3 import Dion3
from orthon.optimizers.muon import Muon
from orthon.optimizers.normuon import NorMuon
from orthon.optimizers.other_rules import class_of_other

_CLASSES: dict[str, type[NamedOptimizer]] = {cls.algorithm: cls for cls in (Dion, Muon, NorMuon, Dion2, Dion3)}


def rules() -> list[str]:
    """Return the names that `create` takes, those of registered rules among them, in the order of the alphabet."""
    return sorted({*RULES, *ALIASES})


def class_of(name: str, called: str = "create: name") -> type[NamedOptimizer]:
    """Return the class of optimizers that a rule has. Upper and lower case are the same where one rule alone is meant.

    A rule from outside, AdamW and Lion get a class that is named after them.

    Args:
        name: of a rule, one of `rules()`.
        called: what errors call the name.

    Raises:
        TypeError: for a name that is no string.
        ValueError: for a name that no rule has, or that may mean several; it tells the nearest ones.
    """
    rule = meant(called, name, rules())
    rule = ALIASES.get(rule, rule)
    return _CLASSES[rule] if rule in _CLASSES else class_of_other(rule)


def create(
    name: str,
    model: nn.Module,
    lr: float | Tensor | None = None,
    *,
    scalar_algorithm: str | None = None,
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

    AdamW, Lion and rules of your own that update each number by itself need no other rule for the rest. So
    `orthon.create("adamw", model, lr=1e-3)` updates the whole model by AdamW with this learning rate.

    Args:
        name: of a rule, one of `orthon.rules()`, such as "dion" or "muon". Upper case counts as lower case.
        model: any module.
        lr: learning rate of the hidden matrices. None is the default of the rule: 0.01 for Orthon's own, 0.003 for
            AdamW, and 0.0003 for Lion.
        scalar_algorithm: what updates the rest, such as "adamw" or "lion". None is AdamW, and the rule itself where
            that updates each number by itself.
        scalar_lr: learning rate of the rest. None is the usual one of `scalar_algorithm`, 0.003 for AdamW and 0.0003
            for Lion, whatever lr is; and lr, where the rest has the same rule as the matrices.
        scalar_lr_ratio: scalar_lr over lr, instead of scalar_lr, as in `for_model`.
        overrides: as in `for_model`.
        per_head: as in `for_model`.
        options: of the rule, and those of `orthon.optimizers.CommonOptions`. A dtype may be given by its name, as files
            have it: "bfloat16".

    Raises:
        TypeError: for an option that the optimizer does not have, or a model that is none; they tell what there is.
        ValueError: for a name that no rule has, and for values that are not allowed.
    """
    cls = class_of(name)
    check_model(model, "create")
    if scalar_algorithm is not None:
        options["scalar_algorithm"] = known_rule("create: scalar_algorithm", scalar_algorithm, elementwise=True)
    if lr is not None:
        options["lr"] = lr
    return cls.for_model(
        model,
        scalar_lr=scalar_lr,
        scalar_lr_ratio=scalar_lr_ratio,
        overrides=overrides,
        per_head=per_head,
        **options,
    )
