"""What all settings share: pydantic checks them, and its errors become one line in our words."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from orthon.train.errors import UserError
from orthon.train.settings.nearest import did_you_mean, nearest
from orthon.train.settings.numbers import fraction, whole
from orthon.train.settings.shortened import shortened

LARGEST = 10**12  # of a count: more would take longer, or more memory, than anybody has

Count = Annotated[int, BeforeValidator(whole), Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, BeforeValidator(whole), Field(ge=0, le=LARGEST)]
Seed = Annotated[int, BeforeValidator(whole), Field(ge=0, le=10**18)]  # generators keep it in 64 bits
Number = Annotated[float, BeforeValidator(fraction)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Fraction = Annotated[Number, Field(gt=0, le=1)]
Momentum = Annotated[Number, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """A group of settings. Each attribute's docstring is its help on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def check(kind: type[S], content: Mapping[str, Any], under: str = "") -> S:
    """Make settings of plain values.

    Args:
        kind: the group of settings.
        content: values by name; what is left out has its default.
        under: dotted name of the group among all settings, for errors.

    Raises:
        UserError: a value is not allowed; it names the setting, the value and what is allowed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(in_words(error, kind, under)) from error


def in_words(error: ValidationError, kind: type[BaseModel], under: str = "") -> str:
    """Return the first error that pydantic has found, in one line: the setting, what is allowed, and the value.

    Args:
        error: from pydantic.
        kind: what was to be made: settings, or a command with its settings in an attribute `settings`.
        under: dotted name of `kind` among all settings.
    """
    first = error.errors(include_url=False)[0]
    path = [part for part in first["loc"] if isinstance(part, str)]  # without the place in a list
    if path[:1] == ["settings"] and "settings" in kind.model_fields:  # on the command line they are named without it
        path, kind = path[1:], kind.model_fields["settings"].annotation  # type: ignore[assignment]
    name = ".".join([*filter(None, [under]), *path])
    given = shortened(first["input"])
    match first["type"]:
        case "value_error":  # from a check of our own, which names the setting itself
            return str(first["ctx"]["error"])
        case "extra_forbidden":
            return f"there is no setting {shortened(name)[1:-1]}; {_others(name, kind, path[:-1])}"
        case "model_type":
            return f"{name or 'the file'} must hold settings by name but is {given}"
        case "int_parsing_size":
            return f"{name} must be less than or equal to {LARGEST} but is {given}"
        case "literal_error":
            allowed = re.findall("'([^']*)'", first["ctx"]["expected"])
            meant = did_you_mean(first["input"], allowed) if isinstance(first["input"], str) else ""
            return f"{_must(first, name)} but is {given}{meant}"
    return f"{_must(first, name)} but is {given}"


def dotted_names(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The names of all settings, with dots between the names of groups and their own."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from dotted_names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _must(error: Any, name: str) -> str:
    """Return what is allowed, in pydantic's words, which are about an input and not about a setting."""
    message = str(error["msg"]).replace("a valid tuple", "a valid array")  # which files and words know
    if message.startswith("Input should"):
        return message.replace("Input should", f"{name} must", 1)
    return f"{name}: {message[:1].lower()}{message[1:]}"


def _others(name: str, kind: type[BaseModel], path: list[str]) -> str:
    """Return what there is in place of a setting that there is not."""
    close = nearest(name, dotted_names(kind))
    if close is not None and close == name.replace("-", "_"):
        *groups, last = close.split(".")
        return f"write {last} under {'.'.join(groups)}:"
    if close is not None:
        return f"did you mean {close}?"
    for part in path:
        kind = kind.model_fields[part].annotation  # type: ignore[assignment]
    return f"there are {', '.join(kind.model_fields)}"
