"""The files of a run, by name, and who may write there."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from orthon.train.errors import UserError

CONFIG = "config.yaml"
SAMPLE = "sample.txt"
PLOT = "loss.png"
SUMMARY = "summary.json"
PART = ".part"  # of a file or folder that is being written


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run that is complete."""

    steps: int
    val_loss: float  # held out, after the last step, nats per token; infinite if training failed
    seconds: float  # of training
    optimizer_share: float  # of that time
    state_bytes: int  # of the optimizers
    corpus: str  # fingerprint of the text
    sample: str  # what the model wrote


def refuse_existing(directory: Path) -> None:
    """Refuse a directory for a new run if there is anything in it.

    Raises:
        UserError: There is, or it is a file.
    """
    if directory.is_dir() and any(path.suffix != PART for path in directory.iterdir()):
        raise UserError(f"{directory} is not empty; go on with its run by --resume {directory} or choose another --out")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another --out")


def replace_file(path: Path, content: str) -> None:
    """Write a file in one go: whoever reads it, and whenever this process ends, has the old content or the new."""
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
        return Summary(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; delete it and resume the run") from error
