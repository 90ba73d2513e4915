"""`key=value` pairs as one typed setting: a mapping in YAML, words on the command line."""

import contextlib
from typing import Annotated, Any

import yaml
from tyro.constructors import PrimitiveConstructorSpec

from orthon.train.errors import UserError

Scalar = int | float | bool | str


def parse_pairs(words: list[str]) -> dict[str, Scalar]:
    """Read `key=value` words; values are typed as in YAML, and numbers may be written as 1e-8.

    Raises:
        UserError: A word is no pair, or a value is no number, truth value or string.
    """
    pairs: dict[str, Scalar] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise UserError(f"KEY=VALUE expected but got {word!r}")
        value = yaml.safe_load(text)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        if not isinstance(value, Scalar):
            raise UserError(f"optimizer.options takes numbers, true, false and words but got {word!r}")
        pairs[key] = value
    return pairs


def format_pairs(pairs: dict[str, Scalar]) -> list[str]:
    """The words that `parse_pairs` reads back."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in pairs.items()]


def _is_pairs(value: Any) -> bool:
    return isinstance(value, dict)


KeyValues = Annotated[
    dict[str, Scalar],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE ...",
        instance_from_str=parse_pairs,
        is_instance=_is_pairs,
        str_from_instance=format_pairs,
    ),
]
