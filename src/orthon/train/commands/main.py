"""The entry of the command line: every error becomes one line and an exit code."""

import importlib.util
import os
import sys
from collections.abc import Sequence

from orthon.saving.shown import one_line
from orthon.train.commands.streams import LastingStream, lasting_streams
from orthon.train.errors import TrainingError, UserError
from orthon.train.processes.launch import process_rank, processes, run_together
from orthon.train.processes.report_file import report
from orthon.train.processes.signals import said_and_code, signals_raise

EXTRA = ("cyclopts", "matplotlib", "numpy", "pydantic", "rich", "tensorboard", "transformers", "yaml")
TRAINING = ("train", "compare")  # commands whose results are files
HELPS = {"--help", "-h", "--help-all"}  # where the output is the result

_unsaid: list[str] = []  # errors of another rank than 0, which are mostly its own as well


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: words after `orthon`; by default those that the process was started with.

    Returns:
        Exit code: 0 for success, also after Ctrl-C, SIGTERM or SIGHUP in training, which save a checkpoint; 1 if the
        training failed; 2 if the command cannot be carried out as given; 130, 143 or 129 after these signals elsewhere.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with lasting_streams() as out:
        if processes() == 1:
            return _with_output(out, words)
        try:
            return run_together(lambda: _with_output(out, words), _say_unsaid)
        except UserError as error:  # of this process alone, which has met no other
            return _complain(str(error), 2, alone=True)
        except KeyboardInterrupt as error:
            return _complain(*said_and_code(error))


def _main(words: list[str]) -> int:
    try:
        with signals_raise():
            return _carry_out(words)
    except UserError as error:
        return _complain(str(error), 2)
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except TrainingError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt as error:
        return _complain(*said_and_code(error))


def _carry_out(words: list[str]) -> int:
    if any(importlib.util.find_spec(module) is None for module in EXTRA):
        return _complain("the trainer needs its extra: pip install 'orthon[train]'", 2)
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, and a notebook's display may be unknown here
    if os.environ.get("COLUMNS") == "0":  # a terminal that does not tell its width; rich would print nothing
        del os.environ["COLUMNS"]
    from orthon.train.commands.app import carry_out

    carry_out(words)
    return 0


def _with_output(out: LastingStream | None, words: list[str]) -> int:
    """Run a command. If the disk was full to which its output goes, that is said; other commands than training fail."""
    code = _main(words)
    if out is None:
        return code
    out.flush()
    if out.fault is None:
        return code
    trains = words[:1] in ([name] for name in TRAINING) and not HELPS & set(words)
    needed = code == 0 and not trains
    return _complain(f"the output could not be written: {out.fault.strerror}", 2 if needed else code)


def _complain(message: str, code: int, *, alone: bool = False) -> int:
    line = f"orthon: {one_line(message, limit=4000)}"
    if alone or process_rank() == 0:
        print(line, file=sys.stderr)
    else:
        _unsaid.append(line)
    report(line)
    return code


def _say_unsaid() -> None:
    """Say why this process fails, where rank 0 has not."""
    for line in _unsaid:
        print(f"{line} (rank {process_rank()})", file=sys.stderr)
