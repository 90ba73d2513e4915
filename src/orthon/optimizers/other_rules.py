"""Optimizers of rules that have no class of their own: AdamW, Lion, and rules from outside."""

import copyreg
from typing import Any, Self

from torch import Tensor, nn

from orthon.algorithms import RULES
from orthon.model.routing import SCALAR_LR
from orthon.optimizers.common import DEFAULT_LR, NamedOptimizer
from orthon.optimizers.mixed import Params

_TITLES = {"adamw": "AdamW"}


class _Made(type):
    """The type of the classes that are made here. No module has them under a name, so pickle is told of their rule."""


class OfOtherRule(NamedOptimizer, metaclass=_Made):
    """What these optimizers are made of."""

    def __init__(self, params: Params, lr: float | Tensor, **options: Any) -> None:
        super().__init__(params, lr, options)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float | Tensor | None = None,
        *,
        scalar_algorithm: str | None = None,
        scalar_lr: float | Tensor | None = None,
        scalar_lr_ratio: float | None = None,
        **options: Any,
    ) -> Self:
        """Return an optimizer for all parameters of a model, as `orthon.Dion.for_model` does.

        A rule that updates each number by itself updates the whole model with one learning rate, unless the scalar
        arguments say otherwise. A rule for matrices has AdamW beside it.

        Args:
            model: any module.
            lr: learning rate of the hidden matrices. None is the default of the rule, 0.003 for AdamW and 0.0003 for
                Lion.
            scalar_algorithm: what updates the rest. None is the rule itself, or AdamW beside a rule for matrices.
            scalar_lr: learning rate of the rest. None is lr where the rest has the same rule as the matrices, and
                otherwise the usual one of `scalar_algorithm`.
            scalar_lr_ratio: scalar_lr over lr, instead of scalar_lr.
            options: the other keyword arguments of `orthon.Dion.for_model`, and those of the constructor.

        Raises:
            TypeError, ValueError: as `orthon.Dion.for_model` does.
        """
        lr = default_lr(cls) if lr is None else lr
        scalar_algorithm = default_scalar_algorithm(cls) if scalar_algorithm is None else scalar_algorithm
        if scalar_algorithm == cls.algorithm and scalar_lr_ratio is None and scalar_lr is None:
            scalar_lr = lr
        return super().for_model(
            model,
            lr,
            scalar_algorithm=scalar_algorithm,
            scalar_lr=scalar_lr,
            scalar_lr_ratio=scalar_lr_ratio,
            **options,
        )


_CLASSES: dict[str, type[OfOtherRule]] = {}


def default_lr(cls: type[NamedOptimizer]) -> float:
    """Return the learning rate that `for_model` of a class takes where none is given."""
    if not issubclass(cls, OfOtherRule):
        return DEFAULT_LR
    default: float = RULES[cls.algorithm].options["lr"].default
    return SCALAR_LR.get(cls.algorithm, default)


def default_scalar_algorithm(cls: type[NamedOptimizer]) -> str:
    """Return the rule that `for_model` of a class takes for what is no hidden matrix where none is given."""
    by_itself = issubclass(cls, OfOtherRule) and not RULES[cls.algorithm].work.takes_matrices
    return cls.algorithm if by_itself else "adamw"


def class_of_other(rule: str) -> type[OfOtherRule]:
    """Return the class of optimizers of a rule that has none of its own, named after the rule."""
    if rule not in _CLASSES:
        title = _TITLES.get(rule) or "".join(word[:1].upper() + word[1:] for word in rule.split("_"))
        _CLASSES[rule] = type(title, (OfOtherRule,), {"algorithm": rule, "__doc__": f"The rule {rule!r}."})
    return _CLASSES[rule]


def _unpickled(rule: str) -> type[OfOtherRule]:
    if rule not in RULES:
        raise ValueError(
            f"unpickling: the optimizer's rule should be registered in this process, too, but {rule!r} is not; import "
            "the module that calls orthon.register_rule for it"
        )
    return class_of_other(rule)


def _pickled(cls: type[NamedOptimizer]) -> Any:
    made = _CLASSES.get(getattr(cls, "algorithm", ""))
    return (_unpickled, (cls.algorithm,)) if cls is made else cls.__qualname__  # somebody's class has its own name


copyreg.pickle(_Made, _pickled)  # type: ignore[arg-type]
