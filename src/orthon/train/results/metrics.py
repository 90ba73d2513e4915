"""The metrics of a run, as lines of JSON and for TensorBoard."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from orthon.saving.files import read_plain
from orthon.train.errors import UserError
from orthon.train.results.appended_file import AppendedFile
from orthon.train.results.directory import METRICS, TENSORBOARD, replace_file
from orthon.train.results.events import EventFile
from orthon.train.results.records import STRICT, Count, Seconds, record_of

LARGEST = 2**30  # bytes of a file that is read
WAY_OUT = "move the file away, and go on without the metrics so far"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The metrics of one step. Losses are in nats per token."""

    __pydantic_config__ = STRICT

    step: Count
    loss: float
    val_loss: float | None = None  # on the held-out text, after the step
    lr: float  # of the hidden matrices
    grad_norm: float  # of all parameters, before clipping
    max_logit: float | None = None  # of attention, over all heads and layers, before QK-clip; None without QK-clip
    tokens_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # since the last record
    optimizer_share: float  # of the step's time
    seconds: Seconds  # of training so far


class MetricsLog:
    """`metrics.jsonl` and TensorBoard's event files in the directory of a run.

    Args:
        directory: of the run.
        records: so far, from `read_metrics`.
        step: the step from which the run continues. Records of later steps are dropped.
        say: gets one line for each file that can no longer be written. Training goes on.
    """

    def __init__(self, directory: Path, records: Sequence[Record], step: int, say: Callable[[str], None]) -> None:
        path = directory / METRICS
        kept = [record for record in records if record.step <= step]
        replace_file(path, "".join(_line(record) for record in kept))
        self._file = AppendedFile(path, say)
        self._events = EventFile(directory / TENSORBOARD, step, say)

    def write(self, record: Record) -> None:
        """Add a record. Its line is in the file when this returns, unless the file cannot be written."""
        self._file.add(_line(record).encode())
        numbers = {
            "loss/train": record.loss,
            "loss/validation": record.val_loss,
            "lr": record.lr,
            "grad_norm": record.grad_norm,
            "max_logit": record.max_logit,
            "throughput(tps)": record.tokens_per_second,
            "optimizer_share": record.optimizer_share,
        }
        self._events.write({name: number for name, number in numbers.items() if number is not None}, record.step)

    def close(self) -> None:
        """Close both."""
        self._file.close()
        self._events.close()


def read_metrics(directory: Path) -> list[Record]:
    """Return the records of a run. There are none if there is no file yet.

    A last line that is damaged is left out: a machine that fails may leave it half written.

    Raises:
        UserError: another line is damaged.
    """
    path = directory / METRICS
    if not path.exists():
        return []
    try:
        lines = read_plain(path, limit=LARGEST).splitlines()
    except ValueError as error:
        raise UserError(f"{path} is damaged; {WAY_OUT}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(record_of(Record, line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"line {number} of {path} is damaged; delete the line, or {WAY_OUT}") from error
    return records


def _line(record: Record) -> str:
    return json.dumps({key: value for key, value in asdict(record).items() if value is not None}) + "\n"
