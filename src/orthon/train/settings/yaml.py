"""YAML as people write it: read from files that anybody may have made."""

import re
from pathlib import Path
from typing import Any

import yaml

from orthon.train.errors import UserError

LARGEST = 2**20  # bytes of a file
DEEPEST = 20  # levels; the settings have three
MOST = 10_000  # values, in which one that is named again counts again


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but for numbers. YAML 1.1, which it follows, asks for 1.0e-3, where people write 1e-3; and
    it takes 010 for 8 and 1:30 for 90, which are words here.

    A key may not be given twice: the safe loader would take the last one and say nothing.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_Loader.yaml_implicit_resolvers = {
    start: [(tag, form) for tag, form in forms if tag not in NUMBERS]
    for start, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"(?:[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+))$", re.ASCII),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN))$",
        re.ASCII,
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """Return the value that a text means; only plain values are made, never other objects.

    Raises:
        yaml.YAMLError: It is not YAML, is nested too deep, or means more values than settings can be.
    """
    depth = 0
    for event in yaml.parse(text, _Loader):  # before values are made, for which Python calls itself at every level
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
    try:
        value = yaml.load(text, _Loader)  # a safe one
    except yaml.YAMLError:
        raise
    except Exception as error:  # a date of month 13, or !!int before a word, breaks the loader in many ways
        raise yaml.YAMLError(f"a value in it cannot be read: {error}") from error
    _refuse_endless(value)
    return value


def read_yaml(path: Path, what: str = "") -> Any:
    """Return the value that is in a file.

    Args:
        path: the file.
        what: is in it, for the error, such as "the settings in ".

    Raises:
        UserError: the file cannot be read, or is not YAML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"{path} has more than {LARGEST:,} bytes, which is too much for settings")
        return parse_yaml(text.decode())
    except OSError as error:
        raise UserError(f"cannot read {what}{path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or a null in the path
        raise UserError(f"cannot read {what}{path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _refuse_endless(value: Any) -> None:
    """Refuse a value that holds itself, or a few lists so often that it never ends."""
    left, count = [value], 0
    while left:
        count += 1
        if count > MOST:
            raise yaml.YAMLError(f"it means more than {MOST} values")
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list | tuple | set):
            left += one
