"""The machine that a word on the command line means: a name, or a file."""

from pathlib import Path

from orthon import machines
from orthon.machines import MACHINES, Machine
from orthon.train.errors import UserError
from orthon.train.settings.cluster import MEASURE
from orthon.train.settings.nearest import did_you_mean
from orthon.train.settings.paths import as_path
from orthon.train.settings.shortened import shortened
from orthon.train.settings.yaml import read_yaml

SUFFIXES = (".yaml", ".yml")


def machine_of_word(word: str, *, measures: bool = False) -> Machine:
    """Return the machine that a word means.

    Args:
        word: a name of the table, or the path of a YAML file.
        measures: whether the command also takes "measure", for the message of an error.

    Raises:
        UserError: it is neither, or the file has not the figures of a machine.
    """
    if word in MACHINES:
        return MACHINES[word]
    path = as_path("machine", word) if word else Path(word)
    if path.suffix not in SUFFIXES and not path.is_file():
        names = [*MACHINES, MEASURE] if measures else list(MACHINES)
        raise UserError(
            f"machine must be one of {', '.join(names)}, or a YAML file with such figures, but is {shortened(word)}"
            + did_you_mean(word, names)
        )
    try:
        content = read_yaml(path)
    except UserError as error:
        hint = "" if path.exists() else f"; orthon plan --machine {MEASURE} writes such a file"
        raise UserError(f"machine: {error}{hint}") from error
    try:
        return machines.machine_from(content, str(path))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
