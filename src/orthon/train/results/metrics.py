"""The metrics of a run, as lines of JSON and for TensorBoard."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from orthon.train.errors import UserError
from orthon.train.results.directory import replace_file
from orthon.train.results.records import STRICT, record_of


@dataclass(frozen=True, kw_only=True)
class Record:
    """The metrics of one step. Losses are in nats per token."""

    __pydantic_config__ = STRICT

    step: int
    loss: float
    val_loss: float | None = None  # on the held-out text, after the step
    lr: float  # of the hidden matrices
    grad_norm: float  # of all parameters, before clipping
    max_logit: float | None = None  # of attention, over all heads and layers, before QK-clip; None without QK-clip
    tokens_per_second: float  # since the last record
    optimizer_share: float  # of the step's time
    seconds: float  # of training so far


class MetricsLog:
    """`metrics.jsonl` and TensorBoard's event files in the directory of a run.

    Args:
        directory: Of the run.
        step: The step from which the run continues. Records of later steps are dropped.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # here, as it takes long to import; rank 0 alone logs

        path = directory / "metrics.jsonl"
        kept = [record for record in read_metrics(directory) if record.step <= step]
        replace_file(path, "".join(_line(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Add a record. Its line is in the file when this returns."""
        self._file.write(_line(record))
        self._file.flush()
        tags = {
            "loss/train": record.loss,
            "loss/validation": record.val_loss,
            "lr": record.lr,
            "grad_norm": record.grad_norm,
            "max_logit": record.max_logit,
            "throughput(tps)": record.tokens_per_second,
            "optimizer_share": record.optimizer_share,
        }
        for tag, value in tags.items():
            if value is not None:
                self._events.add_scalar(tag, value, record.step)

    def close(self) -> None:
        """Close both."""
        self._file.close()
        self._events.close()


def read_metrics(directory: Path) -> list[Record]:
    """The records of a run. There are none if there is no file yet.

    A last line that is damaged is left out: a machine that fails may leave it half written.

    Raises:
        UserError: Another line is damaged.
    """
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(record_of(Record, line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"line {number} of {path} is damaged") from error
    return records


def _line(record: Record) -> str:
    return json.dumps({key: value for key, value in asdict(record).items() if value is not None}) + "\n"
