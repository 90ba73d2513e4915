"""Flat signatures: every option of an optimizer as a keyword argument with its default.

A constructor declares its options as `**options: Unpack[SomeOptions]`. Type checkers and editors read the names and the
types from that typed dict. The defaults are those of the update rule. `flat_signature` joins the two for `help` and
`inspect.signature`, so that no default is written twice.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args

from orthon.algorithms import RULES
from orthon.optimizers.common import SHARED
from orthon.optimizers.mixed import MixedOptimizer

_Init = TypeVar("_Init", bound=Callable[..., None])


def flat_signature(algorithm: str) -> Callable[[_Init], _Init]:
    """Return a decorator that gives a constructor with `**options: Unpack[...]` its flat signature.

    The algorithm's own options come first, then those that all optimizers share.
    """

    def decorated(init: _Init) -> _Init:
        written = inspect.signature(init)
        *first, unpacked = written.parameters.values()
        (typed_dict,) = get_args(unpacked.annotation)
        types = typed_dict.__annotations__
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default_of(name, algorithm), annotation=types[name]
            )
            for name in (*(name for name in types if name not in SHARED), *SHARED)
        ]
        init.__signature__ = written.replace(parameters=[*first, *options])  # type: ignore[attr-defined]
        return init

    return decorated


def default_of(name: str, algorithm: str) -> Any:
    """Return the default of an option: the rule's, that of AdamW for what is no matrix, or `MixedOptimizer`'s."""
    for rule in (RULES[algorithm], RULES["adamw"]):
        if name in rule.options:
            return rule.options[name].default
    return inspect.signature(MixedOptimizer.__init__).parameters[name].default
