"""What all settings share: pydantic checks them, and its errors become one line in our words."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orthon.train.errors import UserError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """A group of settings. Each attribute's docstring is its help on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def check(kind: type[S], content: Mapping[str, Any], under: str = "") -> S:
    """Make settings of plain values.

    Args:
        kind: The group of settings.
        content: Values by name; what is left out has its default.
        under: Dotted name of the group among all settings, for errors.

    Raises:
        UserError: A value is not allowed; it names the setting, the value and what is allowed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(in_words(error, kind, under)) from error


def in_words(error: ValidationError, kind: type[BaseModel], under: str = "") -> str:
    """The first error that pydantic has found, in one line: the setting, what is allowed, and the value.

    Args:
        error: From pydantic.
        kind: What was to be made: settings, or a command with its settings in an attribute `settings`.
        under: Dotted name of `kind` among all settings.
    """
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if path[:1] == ["settings"]:  # on the command line they are named without it
        path, kind = path[1:], kind.model_fields["settings"].annotation  # type: ignore[assignment]
    name = ".".join([*filter(None, [under]), *path])
    match first["type"]:
        case "value_error":  # from a check of our own, which names the setting itself
            return str(first["ctx"]["error"])
        case "extra_forbidden":
            return f"there is no setting {name}; there are {', '.join(_names(kind, path[:-1]))}"
        case "model_type":
            return f"{name or 'the file'} must hold settings by name but is {first['input']!r}"
    return f"{first['msg'].replace('Input should', f'{name} must', 1)} but is {first['input']!r}"


def _names(kind: Any, path: list[str]) -> list[str]:
    """The names of the settings in a group, found by its path from `kind`."""
    for part in path:
        kind = kind.model_fields[part].annotation
    return list(kind.model_fields)
