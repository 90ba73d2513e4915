"""The machine that a word on the command line means: a name, or a file."""

from difflib import get_close_matches
from pathlib import Path

import yaml

from orthon import machines
from orthon.machines import MACHINES, Machine
from orthon.train.errors import UserError
from orthon.train.settings.yaml import parse_yaml

SUFFIXES = (".yaml", ".yml")
MEASURE = "measure"


def machine_of_word(word: str, *, measures: bool = False) -> Machine:
    """The machine that a word means.

    Args:
        word: A name of the table, or the path of a YAML file.
        measures: Whether the command also takes "measure", for the message of an error.

    Raises:
        UserError: It is neither, or the file has not the figures of a machine.
    """
    if word in MACHINES:
        return MACHINES[word]
    path = Path(word)
    if path.suffix not in SUFFIXES and not path.is_file():
        names = ", ".join(MACHINES)
        close = get_close_matches(word.lower(), [*MACHINES, MEASURE] if measures else list(MACHINES), n=1)
        raise UserError(
            f"machine must be one of {names}{f', {MEASURE}' if measures else ''}, or a YAML file with such figures, "
            f"but is {word!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        )
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"machine: cannot read {path}: {error.strerror}; orthon plan --machine {MEASURE} writes such a file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"machine: {path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return machines.machine_from(content, str(path))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
