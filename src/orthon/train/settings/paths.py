"""Paths as people write them: ~ is the home folder, and an empty word is no path."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo

from orthon.train.errors import UserError
from orthon.train.settings.shortened import shortened


def as_path(setting: str, word: str | Path) -> Path:
    """Return the path that a word means. A shell puts the home folder in place of ~ at the start of a word alone.

    Args:
        setting: its name, for errors.
        word: as it was written.

    Raises:
        UserError: it is empty, as where a variable of a shell is not set: that would be the working directory. Or it
            is about the home of nobody.
    """
    if not str(word) or "\0" in str(word):
        raise UserError(f"{setting} must be a path but is {str(word)!r}")
    try:
        # As this process writes its bytes: another one, with another locale, may have written the settings.
        return Path(os.fsdecode(str(word).encode("utf-8", "surrogateescape"))).expanduser()
    except UnicodeError as error:
        raise UserError(f"{setting} must be a path but is {shortened(str(word))}") from error
    except RuntimeError as error:
        raise UserError(f"{setting}: there is no home folder for {str(word)!r}") from error


def path_for(setting: str = "") -> BeforeValidator:
    """Return what makes a path of a word, for a setting; where it has no name, that of the field."""

    def checked(word: object, info: ValidationInfo) -> object:
        return as_path(setting or info.field_name or "", word) if isinstance(word, str | Path) else word

    return BeforeValidator(checked)


AnyPath = Annotated[Path, path_for()]
