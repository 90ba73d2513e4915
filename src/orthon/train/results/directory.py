"""The files in the directory of a run: their names, and how they are written without damage."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from orthon.saving.files import PART, new_file, read_plain
from orthon.train.errors import UserError
from orthon.train.results.records import STRICT, Count, Seconds, record_of

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SAMPLE = "sample.txt"
PLOT = "loss.png"
SUMMARY = "summary.json"
LOCK = "run.lock"  # who works in the directory
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"  # folders
LARGEST = 2**24  # bytes of a summary


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The results of a complete run."""

    __pydantic_config__ = STRICT

    steps: Count
    val_loss: float  # on the held-out text, after the last step, in nats per token; infinite if training failed
    seconds: Seconds  # of training
    optimizer_share: float  # of that time
    state_bytes: Count  # memory of the optimizers' state
    corpus: str  # fingerprint of the text
    sample: str  # what the model wrote


def refuse_existing(directory: Path) -> None:
    """Refuse a directory for a new run, unless it is empty or does not exist.

    Raises:
        UserError: there is something in the directory, or it is a file.
    """
    if directory.is_dir() and not holds_nothing(directory):
        run = quote(str(directory))
        raise UserError(f"{directory} is not empty; go on with its run by --resume {run} or choose another --out")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another --out")


def holds_nothing(directory: Path) -> bool:
    """Return whether there is nothing in a directory but what a process leaves that is killed at the very beginning."""
    return all(path.suffix == PART or path.name == LOCK for path in directory.iterdir())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside the `with` block, an error of the disk says which file it is about. Writing alone does not say so."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def replace_file(path: Path, content: str) -> None:
    """Write a file at once: it has the old content or the new, even if this process is killed on the way."""
    with named(path), new_file(path) as file:
        file.write(content.encode())


def write_summary(directory: Path, summary: Summary) -> None:
    """Mark a run as complete."""
    replace_file(directory / SUMMARY, json.dumps(asdict(summary), indent=2) + "\n")


def read_summary(directory: Path) -> Summary | None:
    """Return the summary of a run, or None if it is not complete.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / SUMMARY
    if not path.exists():
        return None
    try:
        return record_of(Summary, read_plain(path, limit=LARGEST))
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it and resume the run") from error
