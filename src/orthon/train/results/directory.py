"""The files in the directory of a run: their names, and how they are written without damage."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from orthon.train.errors import UserError
from orthon.train.results.records import STRICT, record_of

CONFIG = "config.yaml"
SAMPLE = "sample.txt"
PLOT = "loss.png"
SUMMARY = "summary.json"
PART = ".part"  # suffix of a file or folder that is being written


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The results of a complete run."""

    __pydantic_config__ = STRICT

    steps: int
    val_loss: float  # on the held-out text, after the last step, in nats per token; infinite if training failed
    seconds: float  # of training
    optimizer_share: float  # of that time
    state_bytes: int  # memory of the optimizers' state
    corpus: str  # fingerprint of the text
    sample: str  # what the model wrote


def refuse_existing(directory: Path) -> None:
    """Refuse a directory for a new run, unless it is empty or does not exist.

    Raises:
        UserError: There is something in the directory, or it is a file.
    """
    if directory.is_dir() and any(path.suffix != PART for path in directory.iterdir()):
        run = quote(str(directory))
        raise UserError(f"{directory} is not empty; go on with its run by --resume {run} or choose another --out")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another --out")


def replace_file(path: Path, content: str) -> None:
    """Write a file at once: it has the old content or the new, even if this process is killed on the way."""
    part = path.with_suffix(PART)
    part.write_text(content, encoding="utf-8")
    os.replace(part, path)


def write_summary(directory: Path, summary: Summary) -> None:
    """Mark a run as complete."""
    replace_file(directory / SUMMARY, json.dumps(asdict(summary), indent=2) + "\n")


def read_summary(directory: Path) -> Summary | None:
    """The summary of a run, or None if it is not complete.

    Raises:
        UserError: The file is damaged.
    """
    path = directory / SUMMARY
    if not path.exists():
        return None
    try:
        return record_of(Summary, path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it and resume the run") from error
