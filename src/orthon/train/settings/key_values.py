"""`key=value` pairs as one setting: a mapping in YAML, words on the command line."""

from typing import TYPE_CHECKING, Annotated, Any

import yaml
from cyclopts import Parameter
from pydantic import PlainSerializer, PlainValidator

from orthon.train.settings.yaml import parse_yaml

Scalar = int | float | bool | str | None

# A setting that takes all words up to the next flag.
WORDS = Parameter(consume_multiple=True, negative=())


def parse_pairs(given: Any) -> dict[str, Scalar]:
    """Take a mapping, or read `key=value` words, whose values are written as in YAML.

    Raises:
        ValueError: It is neither, or a value is no number, truth value, null or string.
    """
    if isinstance(given, list | tuple):
        given = dict(map(_parse_pair, given))
    if not isinstance(given, dict):
        raise ValueError(f"optimizer.options must be a mapping but is {given!r}")
    for key, value in given.items():
        if not isinstance(value, Scalar):
            raise ValueError(f"optimizer.options takes numbers, true, false, null and words but got {key}={value!r}")
    return given


def _parse_pair(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not (key and equals):
        raise ValueError(f"optimizer.options: KEY=VALUE expected but got {word!r}")
    try:
        return key, parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"optimizer.options: {text!r} in {word!r} is not a value") from error


if TYPE_CHECKING:
    KeyValues = dict[str, Scalar]
else:  # for the command line a list of words, of which pydantic makes a mapping
    KeyValues = Annotated[
        tuple[str, ...],
        PlainValidator(parse_pairs),
        PlainSerializer(dict),
        WORDS,
    ]
