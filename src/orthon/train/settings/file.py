"""Settings as YAML files, and as one level of dotted names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from orthon.train.errors import UserError
from orthon.train.results.directory import replace_file
from orthon.train.settings.base import S, Settings, in_words
from orthon.train.settings.run import CompareConfig, TrainConfig
from orthon.train.settings.yaml import read_yaml

# What `orthon train` has for the settings that `orthon compare` alone has.
_IN_TRAIN = {
    "optimizers": "optimizer.name",
    "sweep": "optimizer.lr",
    "scalar_lr": "optimizer.scalar_lr",
    "weight_decay": "optimizer.weight_decay",
    "momentum": "optimizer.momentum",
    "target": "no target",
}


def read_config(path: Path, kind: type[S]) -> S:
    """Read settings from a YAML file. Settings that the file leaves out have their defaults.

    Raises:
        UserError: the file cannot be read, or a key or value is not one of the settings.
    """
    return _checked(_read(path), path, kind)


def settings_over_file(given: Mapping[str, Any], path: Path, kind: type[Settings]) -> dict[str, Any]:
    """Return what is given to a command, with the settings of a file under those that are given.

    Args:
        given: values by name, the settings as a mapping under "settings".
        path: the file.
        kind: the settings of the command.

    Raises:
        UserError: see `read_config`.
    """
    content = _read(path)
    _checked(content, path, kind)
    return {**given, "settings": _lay_over(given.get("settings", {}), content)}


def write_config(path: Path, config: TrainConfig) -> None:
    """Write all settings as YAML, so that later changes of the defaults do not change this run."""
    replace_file(path, yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True))


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as mappings, lists, numbers and strings alone."""
    return config.model_dump(mode="json")


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the same settings on one level, with dotted names as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict) and prefix + key != "optimizer.options":
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _read(path: Path) -> Any:
    """Return what a file says, with the names of settings as they are here: people also write dashes."""
    content = read_yaml(path, "the settings in ")
    try:
        return {} if content is None else _with_names(content, TrainConfig.model_fields | CompareConfig.model_fields)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _with_names(content: Any, fields: Mapping[str, Any]) -> Any:
    """Return the same with underscores in place of dashes in names, and settings in place of sections that are empty.
    One value where a list is wanted becomes a list.

    Raises:
        ValueError: a name is there in both ways.
    """
    if not isinstance(content, dict):
        return content
    named: dict[Any, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_") if isinstance(key, str) else key
        if name in named:
            raise ValueError(f"{name} is there twice, with a dash and with an underscore")
        kind = fields[name].annotation if name in fields else None
        kinds = {get_origin(one) or one for one in (kind, *get_args(kind))}
        if isinstance(kind, type) and issubclass(kind, Settings):
            named[name] = {} if value is None else _with_names(value, kind.model_fields)
        elif name == "options":
            named[name] = {} if value is None else _with_names(value, {})
        elif tuple in kinds and isinstance(value, str | int | float):
            named[name] = [value]
        else:
            named[name] = value
    return named


def _checked(content: Any, path: Path, kind: type[S]) -> S:
    if kind is TrainConfig and isinstance(content, dict):
        for name in CompareConfig.model_fields.keys() & content.keys() - TrainConfig.model_fields.keys():
            raise UserError(f"{path}: {name} is a setting of orthon compare; orthon train has {_IN_TRAIN[name]}")
    try:
        return kind.model_validate(_of_settings(content), strict=True)  # where 1 is not true
    except ValidationError as error:
        raise UserError(f"{path}: {in_words(error, kind)}") from error


def _of_settings(value: Any) -> Any:
    """The same value, with tuples in place of lists, as settings have them, and words in place of dates and others.

    JSON would do the same, but has no place for the bytes of a path that are not UTF-8.
    """
    if isinstance(value, dict):
        return {_of_settings(key): _of_settings(one) for key, one in value.items()}
    if isinstance(value, list):
        return tuple(_of_settings(one) for one in value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _lay_over(given: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in given.items():
        old = below.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _lay_over(value, old)
        merged[key] = value
    return merged
