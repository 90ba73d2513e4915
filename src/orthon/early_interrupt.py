"""Ctrl-C while `orthon` on the command line is still importing, which takes seconds: one line, and exit code 130.

Python would raise KeyboardInterrupt inside of an import. Packages let it out as a traceback, or take it for a part of
themselves that is missing, and go on. There is nothing to save yet, so the process ends at once. A program that imports
orthon keeps its own way.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process, as a handler of SIGINT."""
    del frame
    os.write(2, b"orthon: interrupted\n")
    os._exit(128 + number)


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, as usual. Call it when all is imported."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Whether this process was started as `orthon …` or `python -m orthon …`."""
    if sys.argv[:1] == ["-m"]:  # which it is until Python has found the module
        return sys.orig_argv[-len(sys.argv)] == "orthon"
    return os.path.basename(sys.argv[0]) == "orthon" if sys.argv else False


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as with `&`
    with suppress(ValueError):  # in another thread than the main one
        signal.signal(signal.SIGINT, end_at_once)
