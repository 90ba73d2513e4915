"""`key=value` pairs as one setting: a mapping in YAML, words on the command line."""

import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, cast

import yaml
from cyclopts import Parameter
from pydantic import PlainSerializer, PlainValidator

from orthon.train.settings.numbers import fraction
from orthon.train.settings.shortened import shortened
from orthon.train.settings.yaml import parse_yaml

Scalar = int | float | bool | str | None
Value = Scalar | list[int | float]

WHOLE = 2.0**53  # below it, a float has all whole numbers

# A setting that takes all words up to the next flag.
WORDS = Parameter(consume_multiple=True, negative=())


def parse_pairs(given: Any) -> dict[str, Value]:
    """Take a mapping, or read `key=value` words, whose values are written as in YAML.

    As in Python, None is null, and numbers in round brackets are a list. 1/8 is a number, and 1e1 a whole one.

    Raises:
        ValueError: it is neither, or a value is no number, truth value, null, string or list of numbers.
    """
    if isinstance(given, list | tuple):
        pairs = [_parse_pair(word) for word in given]
        given = dict(pairs)
        for key, number in Counter(key for key, _ in pairs).items():
            if number > 1:
                raise ValueError(f"optimizer.options names {shortened(key)} {number} times")
    if not isinstance(given, dict):
        raise ValueError(f"optimizer.options must be a mapping but is {shortened(given)}")
    return {str(key): _value(str(key), value) for key, value in given.items()}


def _value(key: str, value: Any) -> Value:
    value = None if value == "None" else _number(value)
    if isinstance(value, list | tuple):
        value = [_number(one) for one in value]
    numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
    if not (numbers or isinstance(value, Scalar)):
        raise ValueError(
            f"optimizer.options takes numbers, lists of numbers, true, false, null and words but got "
            f"{shortened(key)[1:-1]}={shortened(value)}"
        )
    return cast(Value, value)


def _number(value: Any) -> Any:
    """Return a number as constructors take it: what counts must be an int, and what measures may be one."""
    value = fraction(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE else value


def _parse_pair(word: Any) -> tuple[str, Any]:
    key, equals, text = word.partition("=") if isinstance(word, str) else ("", "", "")
    if not (key and equals):
        raise ValueError(f"optimizer.options: KEY=VALUE expected but got {shortened(word)}")
    try:
        in_brackets = re.fullmatch(r"\((.*)\)", text.strip())
        return key.replace("-", "_"), parse_yaml(f"[{in_brackets[1]}]" if in_brackets else text)
    except yaml.YAMLError as error:
        raise ValueError(f"optimizer.options: {shortened(text)} in {shortened(word)} is not a value") from error


if TYPE_CHECKING:
    KeyValues = dict[str, Value]
else:  # for the command line a list of words, of which pydantic makes a mapping
    KeyValues = Annotated[
        tuple[str, ...],
        PlainValidator(parse_pairs),
        PlainSerializer(dict),
        WORDS,
    ]
