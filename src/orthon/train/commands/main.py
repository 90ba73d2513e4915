"""The entry of the command line: every error becomes one line and an exit code."""

import importlib.util
import sys
from collections.abc import Sequence

from orthon.saving.shown import one_line
from orthon.train.errors import TrainingError, UserError
from orthon.train.processes.launch import process_rank, processes, run_together

EXTRA = ("cyclopts", "matplotlib", "numpy", "pydantic", "rich", "tensorboard", "transformers", "yaml")


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
    if any(importlib.util.find_spec(module) is None for module in EXTRA):
        return _complain("the trainer needs its extra: pip install 'orthon[train]'", 2)
    from orthon.train.commands.app import carry_out

    try:
        carry_out(words)
    except UserError as error:
        return _complain(str(error), 2)
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except TrainingError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return 0


def _complain(message: str, code: int) -> int:
    if process_rank() == 0:
        print(f"orthon: {one_line(message, limit=4000)}", file=sys.stderr)
    return code
