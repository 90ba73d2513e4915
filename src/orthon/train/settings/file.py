"""Settings as YAML files, and which settings differ between two."""

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from orthon.train.errors import UserError
from orthon.train.results.directory import replace_file
from orthon.train.settings.run import TrainConfig

T = TypeVar("T")


def read_config(path: Path, kind: type[T]) -> T:
    """Read settings from a YAML file; settings that the file leaves out have their defaults.

    Raises:
        UserError: The file cannot be read, or a key or value is not one of the settings.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the settings in {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        result: T = _convert({} if content is None else content, kind, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return result


def write_config(path: Path, config: TrainConfig) -> None:
    """Write all settings as YAML, so that later changes of the defaults do not change this run."""
    replace_file(path, yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True))


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as mappings, lists, numbers and strings alone."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level with dotted names, as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict) and prefix + key != "optimizer.options":
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type that `hint` asks for; `name` is the dotted name of the setting, for errors."""
    if dataclasses.is_dataclass(hint):
        return _convert_mapping(value, hint, name)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(inner, args[0], name) for inner in value)
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(inner, args[1], f"{name}.{key}") for key, inner in value.items()}
    if origin in (Union, types.UnionType):
        if type(value) in args:
            return value
        rest = [arg for arg in args if arg is not type(None)]
        return _convert(value, rest[0], name)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{name} must be one of {', '.join(args)} but is {value!r}")
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # also from '1e-3', which YAML takes for a word
        except (TypeError, ValueError):
            pass
    if type(value) is hint:
        return value
    raise UserError(f"{name} must be {_in_words(hint)} but is {value!r}")


def _convert_mapping(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{name or 'the file'} must hold settings by name but is {value!r}")
    hints = get_type_hints(kind)
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in hints:
            raise UserError(f"there is no setting {prefix}{key}; there are {', '.join(hints)}")
    return kind(**{key: _convert(inner, hints[key], f"{prefix}{key}") for key, inner in value.items()})


def _in_words(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, "a list" if get_origin(hint) is tuple else "a mapping")
