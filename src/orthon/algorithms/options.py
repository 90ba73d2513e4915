"""The options of param groups: defaults, what is allowed, and errors that say so."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from orthon.linalg.device import is_readable

# A param group: the options by name, beside "params" and what a scheduler may add; to be read, and to be changed.
Group = Mapping[str, Any]
MutableGroup = dict[str, Any]

# What torch's schedulers keep in param groups.
SCHEDULER_KEYS = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"})

# How far below its range the rounding of a schedule may bring a learning rate.
_HAIR = 1e-6


def _itself(value: Any) -> Any:
    return value


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
        plain: returns an allowed value as a param group keeps it: a number of any kind as Python's own.
        scheduled: whether schedulers may change it from step to step. What a rule keeps of a parameter, and who works
            on it, must not depend on it.
        hair: how far below its range a schedule may bring it by rounding.
    """

    default: Any
    allowed: str
    has_type: Callable[[Any], bool]
    in_range: Callable[[Any], bool] = lambda _: True
    loaded: str = "saved"
    plain: Callable[[Any], Any] = _itself
    scheduled: bool = False
    hair: float = 0.0

    def check(self, name: str, value: object, where: str, *, by_schedule: bool = False) -> Any:
        """Return the value as a param group keeps it.

        Args:
            name: of the option.
            value: to be checked.
            where: what the option was given for; starts the message.
            by_schedule: whether a schedule may have made the value, which may then be a hair below the range. A tensor
                on an accelerator is not read then.

        Raises:
            TypeError, ValueError: for a value that is not allowed; they name the option, the value and what is allowed.
        """
        if not self.has_type(value):
            raise TypeError(self._message(name, value, where))
        kept = self.plain(value)
        if by_schedule and isinstance(kept, Tensor) and (kept.is_meta or not is_readable(kept)):
            return kept  # the host would have to wait for the value
        if not self.in_range(kept) and not (by_schedule and self.hair and -self.hair <= float(kept) < 0):
            raise ValueError(self._message(name, value, where))
        return kept

    def _message(self, name: str, value: object, where: str) -> str:
        return f"{where}: {name} should be {self.allowed}, but is {value!r}"


def own(option: Option) -> Option:
    """Return the option such that loading a state does not change it."""
    return replace(option, loaded="own")


def scheduled(option: Option) -> Option:
    """Return the option as one that schedulers may change from step to step."""
    return replace(option, scheduled=True)


def structural(option: Option) -> Option:
    """Return the option such that a state can only be loaded where it is as it was."""
    return replace(option, loaded="same")


def portion(fraction: float, count: int) -> int:
    """Return how many of `count` a fraction is, rounded up, but not for the rounding of the product itself."""
    return math.ceil(fraction * count * (1 - 1e-12))


def number(default: float, allowed: str, in_range: Callable[[float], bool]) -> Option:
    """Return an option that takes a real number."""
    return Option(default, f"a number {allowed}", is_number, in_range, plain=plain_number)


def number_or_none(allowed: str, in_range: Callable[[float], bool]) -> Option:
    """Return an option that takes a real number, or None, which leaves the choice to the optimizer."""

    def has_type(value: object) -> bool:
        return value is None or is_number(value)

    return Option(None, f"None or a number {allowed}", has_type, lambda v: v is None or in_range(v), plain=plain_number)


def number_or_tensor(default: float, allowed: str, in_range: Callable[[float], bool]) -> Option:
    """Return an option that takes a real number or a tensor with one element, which remains a tensor."""

    def has_type(value: object) -> bool:
        if isinstance(value, Tensor):
            return value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
        return is_number(value)

    def plain(value: Any) -> Any:
        return value if isinstance(value, Tensor) else plain_number(value)

    allowed = f"a number or a one-element tensor {allowed}"
    return Option(default, allowed, has_type, lambda v: in_range(float(v)), plain=plain)


def rate(default: float) -> Option:
    """Return an option that takes a number or a one-element tensor >= 0, and that schedules change."""
    option = number_or_tensor(default, ">= 0", lambda v: 0 <= v < float("inf"))
    return replace(option, scheduled=True, hair=_HAIR)


def decay(default: float) -> Option:
    """Return an option that takes how much of something stays from step to step, and that schedules change."""
    return scheduled(number(default, "in [0, 1)", lambda v: 0 <= v < 1))


def integer(default: int, *, at_least: int) -> Option:
    """Return an option that takes an integer."""
    in_range: Callable[[Any], bool] = lambda v: bool(v >= at_least)  # noqa: E731
    return Option(default, f"an integer >= {at_least}", _is_integer, in_range, plain=plain_number)


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
        return isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))

    def plain(value: Any) -> tuple[float, ...]:
        return tuple(map(plain_number, value))

    in_range: Callable[[Any], bool] = lambda v: all(0 <= beta < 1 for beta in v)  # noqa: E731
    return Option(default, "two numbers in [0, 1)", has_type, in_range, plain=plain)


def float_dtype_or_none(*, float16: bool = True) -> Option:
    """Return an option that takes a real floating dtype of 16 bits or more, or None; float16 only if told so.

    It also takes the dtype's name, as files have it: "bfloat16" or "torch.bfloat16".
    """
    dtypes = (torch.float64, torch.float32, torch.bfloat16, *((torch.float16,) if float16 else ()))
    by_name = {name: dtype for dtype in dtypes for name in (str(dtype), str(dtype).removeprefix("torch."))}
    return Option(
        None,
        "None or one of " + ", ".join(map(str, dtypes)),
        lambda v: v is None or isinstance(v, torch.dtype | str),
        lambda v: v is None or v in dtypes,
        plain=lambda v: by_name.get(v, v),
    )


def plain_number(value: Any) -> Any:
    """Return a number of any kind as an int or a float, and what is no number as it is.

    Numbers are those of Python, with Fraction and Decimal, those of NumPy, and tensors and arrays with one element.
    """
    if type(value) is float or type(value) is int:
        return value
    if not isinstance(value, Real) and getattr(value, "size", None) is not None and hasattr(value, "item"):
        count = value.numel() if isinstance(value, Tensor) else value.size
        value = value.item() if count == 1 else value
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real | Decimal) else value


def is_number(value: object) -> bool:
    """Return whether a value is a number of any kind."""
    return type(plain_number(value)) in (int, float)


def _is_integer(value: object) -> bool:
    return type(plain_number(value)) is int
