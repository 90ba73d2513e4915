"""What a run reports, as lines of JSON and for TensorBoard."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from orthon.train.errors import UserError
from orthon.train.results.directory import replace_file


@dataclass(frozen=True, kw_only=True)
class Record:
    """One step. Losses are in nats per token."""

    step: int
    loss: float
    val_loss: float | None = None  # on the held-out text, after the step
    lr: float  # of the hidden matrices
    grad_norm: float  # of all parameters, before clipping
    max_logit: float | None = None  # of attention, over the step's heads and layers, before QK-clip; only with it
    tokens_per_second: float  # since the record before
    optimizer_share: float  # of the step's time
    seconds: float  # of training so far


class MetricsLog:
    """`metrics.jsonl` and TensorBoard's event files in the directory of a run.

    Args:
        directory: Of the run.
        step: Records after this step are dropped: they come from a run that is continued from here.
    """

    def __init__(self, directory: Path, step: int) -> None:
        path = directory / "metrics.jsonl"
        kept = [record for record in read_metrics(directory) if record.step <= step]
        replace_file(path, "".join(_line(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Add a record; a line is in the file at once, whole."""
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
        """Finish both."""
        self._file.close()
        self._events.close()


def read_metrics(directory: Path) -> list[Record]:
    """The records of a run; none where there is no file yet.

    Raises:
        UserError: A line is damaged, other than the last one, which a lost machine may leave half written.
    """
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise UserError(f"line {number} of {path} is damaged") from error
    return records


def _line(record: Record) -> str:
    return json.dumps({key: value for key, value in asdict(record).items() if value is not None}) + "\n"
