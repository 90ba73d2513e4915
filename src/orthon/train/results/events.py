"""Numbers for TensorBoard, in an event file.

PyTorch's SummaryWriter writes in a thread. If the disk is full there, it leaves a traceback, half a record, and an
error in the training. Here a record is written at once and as a whole.
"""

import io
import os
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from socket import gethostname
from typing import Any

from orthon.saving.files import make_folder
from orthon.train.results.appended_file import AppendedFile

_numbers = count()  # of files that one process begins in one second


class EventFile:
    """A new event file in a folder.

    Args:
        folder: for TensorBoard; made if it is not there.
        step: the step from which the run continues. TensorBoard drops what older files say about later ones.
        say: gets one line when the file cannot be written.
    """

    def __init__(self, folder: Path, step: int, say: Callable[[str], None]) -> None:
        from tensorboard.compat.proto import event_pb2  # here, as it takes long to import; rank 0 alone logs

        self._kinds: Any = event_pb2
        make_folder(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = AppendedFile(folder / name, say)
        self._add(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=step + 1, session_log=start)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step, by name."""
        for name, number in numbers.items():
            self._add(step=step, summary={"value": [{"tag": name, "simple_value": number}]})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **content: Any) -> None:
        event = self._kinds.Event(wall_time=time.time(), **content)
        self._file.add(_record(event.SerializeToString()))


def _record(content: bytes) -> bytes:
    """Return the bytes of one record in a file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    RecordWriter(file).write(content)
    return file.getvalue()
