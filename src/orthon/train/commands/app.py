"""The commands, by name.

A command is imported only when it is called, so that the general help and errors need not wait for transformers.
"""

import importlib.metadata
import json
import re
from collections.abc import Sequence

from cyclopts import (
    App,
    ArgumentCollection,
    CycloptsError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from pydantic import ValidationError

from orthon.early_interrupt import raise_again
from orthon.train.errors import UserError
from orthon.train.settings.base import in_words
from orthon.train.settings.nearest import nearest
from orthon.train.settings.numbers import fraction
from orthon.train.settings.shortened import shortened

HELP = ("--help", "-h")
HELP_ALL = "--help-all"
NEGATIVE = re.compile(r"-\d+(\.\d*)?/\d+(\.\d*)?")  # a fraction, which cyclopts takes for an option

app = App(
    name="orthon",
    help="Train a LLaMA with optimizers whose updates are orthonormal.",
    version=f"orthon {importlib.metadata.version('orthon')}",
    default_parameter=Parameter(allow_repeating=True),  # the last one counts
    help_format="markdown",
    help_flags=(*HELP, HELP_ALL),
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.command(
    "orthon.train.commands.train:train",
    name="train",
    help="Train once: loss curve, checkpoints, a sample of what the model writes.",
)
app.command(
    "orthon.train.commands.compare:compare",
    name="compare",
    help="Train with several optimizers on the same text: a table and a picture. Called again, it goes on.",
)
app.command(
    "orthon.train.commands.tokenize:tokenize",
    name="tokenize",
    help="Make tokens of a large text once, for many runs. Called again after an interruption, it goes on.",
)
app.command(
    "orthon.train.commands.convert:convert",
    name="convert",
    help="Convert states of other packages' optimizers to one that orthon's optimizers load.",
)
app.command(
    "orthon.train.commands.explain:explain",
    name="explain",
    help="Which parameter goes where and why, before anything is trained: rules, state, layout, communication.",
)
app.command(
    "orthon.train.commands.plan:plan",
    name="plan",
    help="What a step of several optimizers costs on a cluster that is not here: time, memory, communication.",
)
COMMANDS = tuple(name for name in app if not name.startswith("-"))


def carry_out(words: Sequence[str]) -> None:
    """Carry out the command that the words name.

    Raises:
        UserError: the words are not a command with its settings, or the command refuses them.
        TrainingError: the training went wrong.
    """
    if _asks_for_short_help(words):
        return
    _refuse_deep(words)
    if words and words[0] in COMMANDS:
        app[words[0]]  # imports it
    raise_again()
    words = [str(fraction(word)) if NEGATIVE.fullmatch(word) else word for word in words]
    try:
        app(words)
    except UnknownCommandError as error:
        name = (error.unused_tokens or [""])[0]
        close = nearest(name, [*COMMANDS, HELP[0], HELP_ALL] if name.startswith("-") else COMMANDS)
        rest = _meant(_quoted(close)) if close else f" Available commands: {', '.join(COMMANDS)}."
        raise UserError(f"Unknown command {_quoted(name)}.{rest}") from error
    except UnusedCliTokensError as error:
        unused = shortened(" ".join(error.unused_tokens or ()))
        raise UserError(f"{unused} belongs to no setting: write --NAME before it; --help lists the names") from error
    except UnknownOptionError as error:
        name = (error.token.keyword or error.token.value).partition("=")[0]
        raise UserError(_unknown_option(name, error.argument_collection)) from error
    except CycloptsError as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError) and error.argument is not None:
            _refuse_unknown(words, error)  # what is missing or wrong may be what its value was meant for
            raise UserError(in_words(cause, error.argument.hint)) from error
        raise UserError(str(error)) from error


def _refuse_deep(words: Sequence[str]) -> None:
    """Refuse JSON, which cyclopts takes for a group of settings, if it is nested deeper than Python reads it."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("-") else word
        if value.lstrip()[:1] in ("{", "["):
            try:
                json.loads(value)
            except ValueError:
                continue  # no JSON; what it is then, the settings say
            except RecursionError as error:
                raise UserError(f"{shortened(value)} is nested too deep") from error


def _asks_for_short_help(words: Sequence[str]) -> bool:
    """Print the short help if the words ask for it, and say whether they do."""
    if HELP_ALL in words or not set(HELP) & set(words):
        return False
    from orthon.train.commands.short_help import SHORT  # here, as it imports torch

    help_of = SHORT.get(words[0])
    if help_of is None:
        return False
    print(help_of.text(words[0]))
    return True


def _refuse_unknown(words: Sequence[str], error: CycloptsError) -> None:
    """Raise a UserError for the first word that is an option of no setting, if there is one."""
    if error.app is None:
        return
    known = error.app.assemble_argument_collection()
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0]
        try:
            if name.startswith("--"):
                known.match(name)
        except ValueError:
            raise UserError(_unknown_option(name, known)) from error


def _unknown_option(name: str, known: ArgumentCollection) -> str:
    """Return the option, and the one that was meant."""
    close = nearest(name, [*(one for argument in known for one in argument.names), HELP[0], HELP_ALL])
    if close == name:
        return f"{name} comes after --, which ends the options: write it before"
    return f"Unknown option: {shortened(name)[1:-1]}.{_meant(close)}"


def _meant(close: str | None) -> str:
    return f" Did you mean {close}?" if close else ""


def _quoted(word: str) -> str:
    return f'"{shortened(word)[1:-1]}"'
