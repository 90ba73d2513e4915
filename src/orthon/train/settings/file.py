"""Settings as YAML files, and as one level of dotted names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orthon.saving.shown import one_line
from orthon.saving.untrusted.bounded import check_bounded
from orthon.saving.untrusted.errors import RefusedError
from orthon.train.errors import UserError
from orthon.train.results.directory import replace_file
from orthon.train.settings.base import S, Settings, in_words
from orthon.train.settings.run import TrainConfig
from orthon.train.settings.yaml import parse_yaml

LARGEST = 2**20  # bytes of a file
MOST = 100_000  # values in it


def read_config(path: Path, kind: type[S]) -> S:
    """Read settings from a YAML file. Settings that the file leaves out have their defaults.

    Raises:
        UserError: The file cannot be read, or a key or value is not one of the settings.
    """
    return _checked(_read(path), path, kind)


def settings_over_file(given: Mapping[str, Any], path: Path, kind: type[Settings]) -> dict[str, Any]:
    """What is given to a command, with the settings of a file under those that are given.

    Args:
        given: Values by name, the settings as a mapping under "settings".
        path: The file.
        kind: The settings of the command.

    Raises:
        UserError: See `read_config`.
    """
    content = _read(path)
    _checked(content, path, kind)
    return {**given, "settings": _lay_over(given.get("settings", {}), content)}


def write_config(path: Path, config: TrainConfig) -> None:
    """Write all settings as YAML, so that later changes of the defaults do not change this run."""
    replace_file(path, yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True))


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as mappings, lists, numbers and strings alone."""
    return config.model_dump(mode="json")


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same settings on one level, with dotted names as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict) and prefix + key != "optimizer.options":
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"{path} has more than {LARGEST:,} bytes, which is too much for settings")
        content: Any = parse_yaml(text.decode())
        check_bounded(content, nodes=MOST)
    except OSError as error:
        raise UserError(f"cannot read the settings in {path}: {error.strerror}") from error
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{path} is not YAML of settings: it is too deep") from error
    except RefusedError as error:
        raise UserError(f"{path} must hold settings by name: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # also a date that is none, or a number of many digits
        raise UserError(f"{path} is not YAML: {one_line(str(error))}") from error
    return {} if content is None else content


def _checked(content: Any, path: Path, kind: type[S]) -> S:
    try:
        # As JSON, for which pydantic's strict mode is made: 1 is not true, but a list may become a tuple.
        return kind.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {in_words(error, kind)}") from error
    except (TypeError, ValueError) as error:  # YAML allows dates as keys, and lists that contain themselves
        raise UserError(f"{path} must hold settings by name: {error}") from error


def _lay_over(given: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in given.items():
        old = below.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _lay_over(value, old)
        merged[key] = value
    return merged
