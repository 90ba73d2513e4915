"""stdout and stderr that may end before the command does, as in `orthon train | head`."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

GONE = {errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET}  # of a pipe or a terminal whose reader has gone away


class LastingStream:
    """A stream to which writing never fails. Characters that it does not have are written as their numbers.

    If its reader has gone away, what is written is dropped in silence: the reader did not want more. Any other fault,
    such as a full disk, is kept in `fault`.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # where the locale is that of ASCII, or a path has bytes that are no text
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._note(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what has been written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._note(error)

    def end(self) -> None:
        """Hand on all, or forget it, so that Python's own last flush does not fail."""
        self.flush()
        if self.fault is not None:
            self._forget()

    def _note(self, error: OSError) -> None:
        if error.errno in GONE:
            self._forget()
        elif self.fault is None:
            self.fault = error

    def _forget(self) -> None:
        """Lead the stream nowhere."""
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[LastingStream | None]:
    """Inside the `with` block, writing to stdout and stderr never fails. It gives the one for stdout, if there is one.

    Descriptors that are closed lead nowhere from now on. Otherwise a checkpoint could get the number of stderr, and
    warnings with it.
    """
    with suppress(OSError):
        while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(free)
    before = sys.stdout, sys.stderr
    streams = [None if stream is None else LastingStream(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        for stream in streams:
            if stream is not None:
                stream.end()
        sys.stdout, sys.stderr = before
