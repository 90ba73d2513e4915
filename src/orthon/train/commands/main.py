"""The command line: `orthon train`, `orthon compare` and `orthon convert`."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from orthon.train.errors import TrainingError, UserError
from orthon.train.processes.launch import process_rank, processes, run_together

HELP = """\
usage: orthon [--help] [--version] COMMAND ...

Train a LLaMA with optimizers whose updates are orthonormal.

commands:
  train      one run: loss curve, checkpoints, a sample of what the model writes
  compare    several optimizers on the same data, a table and a picture
  convert    states of other packages' optimizers as one that orthon's optimizers load

`orthon COMMAND --help` lists the settings of a command."""

EXTRA = ("matplotlib", "numpy", "rich", "tensorboard", "transformers", "tyro", "yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Words after `orthon`; by default those that the process was started with.

    Returns:
        Exit code: 0 for success, also after Ctrl-C in training, which saves a checkpoint; 1 if the training
        failed; 2 if the command cannot be carried out as given; 130 after Ctrl-C elsewhere.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if processes() == 1:
        return _main(words)
    try:
        return run_together(lambda: _main(words))
    except UserError as error:
        return _complain(str(error), 2)


def _main(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(HELP)
        return 0
    if name == "--version":
        print(f"orthon {importlib.metadata.version('orthon')}")
        return 0
    if name not in ("train", "compare", "convert"):
        return _complain(f"there is no command {name!r}; there are train, compare and convert", 2)
    if any(importlib.util.find_spec(module) is None for module in EXTRA):
        return _complain("the trainer needs its extra: pip install 'orthon[train]'", 2)
    try:
        return _command(name, words[1:])
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _command(name: str, words: list[str]) -> int:
    # Only here, so that help and errors about the command itself do not wait for these imports.
    from orthon.train.commands.compare import CompareCommand, run_compare
    from orthon.train.commands.convert import ConvertCommand, run_convert
    from orthon.train.commands.train import TrainCommand, run_train

    commands: dict[str, tuple[Any, Callable[[Any], None]]] = {
        "train": (TrainCommand, run_train),
        "compare": (CompareCommand, run_compare),
        "convert": (ConvertCommand, run_convert),
    }
    kind, carry_out = commands[name]
    try:
        carry_out(_parse(kind, name, words))
    except SystemExit:  # --help has been shown
        return 0
    except UserError as error:
        return _complain(str(error), 2)
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except TrainingError as error:
        return _complain(str(error), 1)
    return 0


def _parse(kind: Any, name: str, words: list[str]) -> Any:
    """The command, with its settings if it has any: defaults, overridden by a file, overridden by flags."""
    import tyro

    has_settings = any(field.name == "settings" for field in dataclasses.fields(kind))
    default = kind(settings=_settings_from_file(kind, words)) if has_settings else tyro.MISSING_NONPROP
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=f"orthon {name}",
                description=kind.__doc__,
                args=words,
                default=default,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UserError(_unbox(said.getvalue())) from end


def _settings_from_file(kind: Any, words: list[str]) -> Any:
    """Settings from the file that --config or --resume names; else the defaults."""
    from pathlib import Path

    from orthon.train.commands.train import AUTO
    from orthon.train.results.directory import CONFIG
    from orthon.train.settings.file import read_config

    default = kind()
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("config", "resume"):
        if hasattr(default, flag):
            peek.add_argument(f"--{flag}")
    try:
        given, _ = peek.parse_known_args(words)
    except argparse.ArgumentError:  # the parser that knows all flags will say so
        return default.settings
    path = given.config
    if getattr(given, "resume", None) not in (None, AUTO):
        path = Path(given.resume) / CONFIG
    return default.settings if path is None else read_config(Path(path), type(default.settings))


def _unbox(said: str) -> str:
    """The first paragraph of tyro's message as one line, without its title and frame.

    With UTF-8 the title is a part of the frame; without, there is a line of it and one of hyphens.
    """
    lines = [line for line in said.splitlines() if not line.startswith("╭")]
    lines = ["" if set(line) <= set(" -─│╰╯") else line.strip(" │") for line in lines]
    paragraphs = [" ".join(group) for filled, group in itertools.groupby(lines, bool) if filled]
    if "╭" not in said:
        del paragraphs[:1]
    message = paragraphs[0] if paragraphs else " ".join(said.split())
    return re.sub(r"^Error parsing settings\S*: ", "", message)  # our own errors name the setting


def _complain(message: str, code: int) -> int:
    if process_rank() == 0:
        print(f"orthon: {' '.join(message.split())}", file=sys.stderr)
    return code
