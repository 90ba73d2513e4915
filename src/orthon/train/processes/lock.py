"""A directory belongs to one command at a time. The kernel keeps the lock, and frees it when the process dies."""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from socket import gethostname

from orthon.train.errors import UserError
from orthon.train.processes.ranks import Processes
from orthon.train.results.directory import LOCK

HOLDER = re.compile(r"process (\d{1,10}) on ([\w.-]{1,64}) since ([\dT:.+-]{1,40})\n", re.ASCII)
TRIES = 1000  # to make the directory and the file, if others delete them
LONGEST = 200  # bytes that are read of a lock file
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of file systems that have none

_held: "set[Lock]" = set()


@contextmanager
def alone_in(directory: Path, ranks: Processes, say: Callable[[str], None]) -> Iterator[None]:
    """Keep all other commands out of a directory inside the `with` block. All ranks call it together.

    The directory is made if it is not there, and is deleted at the end if nothing lies in it then.

    Args:
        directory: of a run or a comparison.
        ranks: who takes part. Rank 0 holds the lock.
        say: gets a line if the file system has no locks.

    Raises:
        UserError: another command works in the directory.
    """
    lock = ranks.together(lambda: None if ranks.rank else Lock(directory, say))
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class Lock:
    """A lock on a directory: on a file in it, as not all file systems can lock directories.

    The file names the holder for whoever comes later. It is deleted at the end; if a killed process leaves it, that
    does no harm, as the lock is not the file.

    Args:
        directory: what to lock.
        say: gets a line if the file system has no locks.

    Raises:
        UserError: another process holds it, or the file is not of this kind.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.directory, self.path = directory, directory / LOCK
        self._made: list[Path] = []  # folders, the inmost first
        self._handle: int | None = None
        try:
            tries = TRIES
            while not self._take(say):
                tries -= 1
                if not tries:
                    raise UserError(
                        f"{self.directory} cannot be made, or other processes delete it all the time; "
                        "choose another --out"
                    )
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others in. What `alone_in` has made and nobody has used is deleted."""
        if self._handle is not None:
            _held.discard(self)
            with suppress(OSError):
                if is_at(self._handle, self.path):
                    self.path.unlink()
            os.close(self._handle)
            self._handle = None
        with suppress(OSError):  # it is in use
            for folder in self._made:
                folder.rmdir()
        self._made = []

    def _take(self, say: Callable[[str], None]) -> bool:
        """Take the lock. False if the directory or the file was deleted on the way, by a holder who has just ended."""
        try:
            self._make_folders()
            handle = _open(self.path)
        except FileNotFoundError:
            return False
        if handle is None:  # nothing can be written there, by nobody
            return True
        try:
            if self._locks(handle, say):
                self._handle = handle
        finally:
            if self._handle is None:
                os.close(handle)
        if self._handle is None:
            return False
        _held.add(self)
        self._write_holder(handle)
        return True

    def _make_folders(self) -> None:
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory} is a file; choose another --out")
        missing = [folder for folder in (self.directory, *self.directory.parents) if not folder.exists()]
        self._made += [folder for folder in missing if folder not in self._made]
        self.directory.mkdir(parents=True, exist_ok=True)

    def _locks(self, handle: int, say: Callable[[str], None]) -> bool:
        """Lock an open file. False if it has been deleted, and others lock another one of its name."""
        content = _content(handle, self.path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            who = HOLDER.fullmatch(content)
            raise UserError(
                f"{self.directory} is in use by {who[0].strip() if who else 'another process'}, "
                "and only one may write into it; wait for its end, or choose another --out"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"{self.path} cannot be locked ({error.strerror}): see to it that no other process writes there")
        return is_at(handle, self.path)

    def _write_holder(self, handle: int) -> None:
        host = re.sub(r"[^\w.-]", "_", gethostname(), flags=re.ASCII)[:64] or "_"
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        line = f"process {os.getpid()} on {host} since {since}\n".encode()
        with suppress(OSError):  # on a full disk, or in the file of another user; the lock holds nevertheless
            os.ftruncate(handle, 0)
            if os.pwrite(handle, line, 0) < len(line):
                os.ftruncate(handle, 0)

    def forget(self) -> None:
        """Close the file in a forked child: otherwise the child would hold the lock when its parent has died."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._made = None, []


def _open(path: Path) -> int | None:
    """Open a lock file, or make it. None if it is not there and nobody may write it.

    Raises:
        UserError: it is a link, or no plain file.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            if not os.path.lexists(path):
                return None
            handle = os.open(path, os.O_RDONLY | flags)  # of another user
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a symbolic link, which is not followed; delete it") from error
        raise
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(handle)
        raise UserError(f"{path} is not a plain file with one name; delete it")
    return handle


def _content(handle: int, path: Path) -> str:
    """Return what a lock file says. A file that is something else is left as it is.

    Raises:
        UserError: it is something else.
    """
    content = os.pread(handle, LONGEST, 0).decode("ascii", "replace")
    if content and not HOLDER.fullmatch(content):
        raise UserError(f"{path} is no lock of orthon's; move it away")
    return content


def is_at(handle: int, path: Path) -> bool:
    """Return whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _forget_all() -> None:
    for lock in _held:
        lock.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)
