"""A file to which pieces are added while a run goes on, whatever happens to the disk."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

MOST_WAITING = 10_000  # pieces; then the oldest are lost
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class AppendedFile:
    """A file that gets whole pieces alone.

    A piece that cannot be written, as on a full disk, waits until the next one comes. The first failure is said.

    Args:
        path: of the file. It is made when the first piece comes.
        say: gets one line when a piece cannot be written.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self._say = path, say
        self._handle: int | None = None
        self._size: int | None = None  # of the whole pieces, in bytes
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._said = False

    def add(self, piece: bytes) -> None:
        """Add a piece. It is in the file when this returns, unless the file cannot be written."""
        self._waiting.append(piece)
        self._try()

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
        if self._waiting:
            self._try()
        self._close()

    def _try(self) -> None:
        try:
            handle = self._open()
            while self._waiting:
                self._write(handle, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._tell(error)
            self._close()  # some errors stay with an open file, so the next try opens it anew

    def _open(self) -> int:
        if self._handle is None:
            self._handle = os.open(self.path, FLAGS, 0o666)
            size = os.fstat(self._handle).st_size
            if self._size is None:
                self._size = size
            elif size > self._size:
                os.ftruncate(self._handle, self._size)
        return self._handle

    def _write(self, handle: int, piece: bytes) -> None:
        assert self._size is not None
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
        except OSError:
            if len(rest) < len(piece):
                os.ftruncate(handle, self._size)
            raise
        self._size += len(piece)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                os.close(handle)
            except OSError as error:  # where a disk in a network tells only now that it is full
                self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            self._say(f"{self.path} cannot be written: {error.strerror}; training goes on, and new lines wait for room")
