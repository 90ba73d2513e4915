"""Ctrl-C, SIGTERM and SIGHUP: requests to stop when the present step is done."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from orthon.train.processes.signals import stop_signals


class Interrupt:
    """Inside the `with` block, the first of these signals is only noted. A second one has its usual effect."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # other threads may not set handlers
            self._before = {number: signal.signal(number, self._note) for number in stop_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
