"""The signals that ask a command to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Stopped(KeyboardInterrupt):
    """A signal has asked the command to stop, at a time when there is nothing to save.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_signals() -> list[signal.Signals]:
    """Return Ctrl-C, SIGTERM and SIGHUP: the terminal is gone. Under `nohup`, SIGHUP is ignored, and must stay so."""
    return [number for number in SAID if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside the `with` block, SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():  # other threads may not set handlers
        yield
        return
    before = {number: signal.signal(number, _raise) for number in stop_signals() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def said_and_code(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return what to say about the signal that has ended a command, and the exit code: 128 + its number."""
    number = signal.Signals(error.number if isinstance(error, Stopped) else signal.SIGINT)
    return SAID[number], 128 + number


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    raise Stopped(number)
