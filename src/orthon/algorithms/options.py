"""The options of param groups: defaults, what is allowed, and errors that say so."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# A param group: the options by name, beside "params" and what a scheduler may add.
Group = Mapping[str, Any]

# What torch's schedulers keep in param groups.
SCHEDULER_KEYS = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"})


@dataclass(frozen=True)
class Option:
    """One option of a param group.

    Attributes:
        default: its value where nothing is said.
        allowed: completes "should be ...".
        has_type: whether a value is of a kind that is allowed.
        in_range: whether such a value is allowed.
        loaded: what becomes of it where a state is loaded. "saved": it takes the saved value. "own": it keeps the
            one that it has. "same": the two must be the same, as the state means something else otherwise.
    """

    default: Any
    allowed: str
    has_type: Callable[[Any], bool]
    in_range: Callable[[Any], bool] = lambda _: True
    loaded: str = "saved"

    def check(self, name: str, value: object, where: str) -> None:
        """Raise a TypeError or ValueError that names the option, its value and what is allowed.

        Args:
            name: of the option.
            value: to be checked.
            where: what the option was given for; starts the message.
        """
        message = f"{where}: {name} should be {self.allowed}, but is {value!r}"
        if not self.has_type(value):
            raise TypeError(message)
        if not self.in_range(value):
            raise ValueError(message)


def own(option: Option) -> Option:
    """Return the option such that loading a state does not change it."""
    return replace(option, loaded="own")


def structural(option: Option) -> Option:
    """Return the option such that a state can only be loaded where it is as it was."""
    return replace(option, loaded="same")


def portion(fraction: float, count: int) -> int:
    """Return how many of `count` a fraction is, rounded up, but not for the rounding of the product itself."""
    return math.ceil(fraction * count * (1 - 1e-12))


def number(default: float, allowed: str, in_range: Callable[[float], bool]) -> Option:
    """Return an option that takes a real number."""
    return Option(default, f"a number {allowed}", _is_number, in_range)


def number_or_none(allowed: str, in_range: Callable[[float], bool]) -> Option:
    """Return an option that takes a real number, or None, which leaves the choice to the optimizer."""

    def has_type(value: object) -> bool:
        return value is None or _is_number(value)

    return Option(None, f"None or a number {allowed}", has_type, lambda v: v is None or in_range(v))


def number_or_tensor(default: float, allowed: str, in_range: Callable[[float], bool]) -> Option:
    """Return an option that takes a real number or a tensor with one element."""

    def has_type(value: object) -> bool:
        return _is_number(value) or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex())

    return Option(default, f"a number or a one-element tensor {allowed}", has_type, lambda v: in_range(float(v)))


def integer(default: int, *, at_least: int) -> Option:
    """Return an option that takes an integer."""
    return Option(default, f"an integer >= {at_least}", _is_integer, lambda v: bool(v >= at_least))


def choice(default: str, *others: str) -> Option:
    """Return an option that takes one of several names."""
    names = (default, *others)
    return Option(default, "one of " + ", ".join(map(repr, names)), lambda v: isinstance(v, str), names.__contains__)


def choice_or_none(*names: str) -> Option:
    """Return an option that takes one of several names, or None, which leaves the choice to the rule."""
    allowed = "None or one of " + ", ".join(map(repr, names))
    return Option(None, allowed, lambda v: v is None or isinstance(v, str), (None, *names).__contains__)


def flag(default: bool) -> Option:
    """Return an option that takes True or False."""
    return Option(default, "True or False", lambda v: isinstance(v, bool))


def flag_or_none() -> Option:
    """Return an option that takes True, False or None, for torch's own choice."""
    return Option(None, "True, False or None", lambda v: v is None or isinstance(v, bool))


def betas(default: tuple[float, float]) -> Option:
    """Return an option that takes two decay rates."""

    def has_type(value: object) -> bool:
        return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))

    return Option(default, "two numbers in [0, 1)", has_type, lambda v: all(0 <= beta < 1 for beta in v))


def float_dtype_or_none(*, float16: bool = True) -> Option:
    """Return an option that takes a real floating dtype of 16 bits or more, or None; float16 only if told so."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, *((torch.float16,) if float16 else ()))
    return Option(
        None,
        "None or one of " + ", ".join(map(str, dtypes)),
        lambda v: v is None or isinstance(v, torch.dtype),
        lambda v: v is None or v in dtypes,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
