"""One process at a time writes a folder. The kernel releases the lock when the process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orthon.train.errors import UserError
from orthon.train.processes.lock import is_at

LOCK = "lock"


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Make a folder and hold its lock. It may be renamed or deleted while the lock is held.

    Args:
        folder: that is written.
        wait: whether to wait for another process that writes it.

    Raises:
        UserError: the folder is a link; or another process writes it, and `wait` is off.
    """
    path = folder / LOCK
    while True:
        if folder.is_symlink():
            raise UserError(f"{folder} must be a folder but is a symbolic link")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # another process has just renamed the folder
            continue
        try:
            _lock(handle, folder, wait)
            if is_at(handle, path):
                yield
                return
        finally:
            os.close(handle)


def _lock(handle: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise UserError(f"another process is writing {folder}") from error
