"""Files that are opened as what they seem to be: no link is followed, and nothing that is there is written over.

Who gives a folder away can put links in it, with the names that a program will write to. So a new file first has a name
that nobody can know, is made under that name only if nothing is there, and is renamed when it is whole. A rename
replaces a link, and not what it leads to.
"""

import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PART = ".part"  # suffix of a file or folder that is being written


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file to read it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a link, a folder, a pipe or a device.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError(f"{path} is not a plain file")
    # It cannot have become a link in the meantime, and a pipe would not be waited for.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise ValueError(f"{path} is not a plain file")
    return file


def read_plain(path: Path, *, limit: int) -> bytes:
    """Return the content of a file.

    Args:
        path: of the file.
        limit: the number of bytes that it may have.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a link, a folder, a pipe or a device, or has more bytes.
    """
    with open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes")
    return content


def create(path: Path) -> io.BufferedRandom:
    """Make a file and open it to write. What is there already, be it a link, is an error: FileExistsError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "w+b")


@contextmanager
def new_file(path: Path) -> Iterator[io.BufferedRandom]:
    """Write a file inside the `with` block. It gets its name at the end, in place of what had it; none if it fails."""
    part = path.with_name(f"{path.name[:200]}.{secrets.token_hex(8)}{PART}")
    try:
        with create(part) as file:
            yield file
        os.replace(part, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            part.unlink()
        if isinstance(error, OSError) and error.filename == str(part):
            error.filename, error.filename2 = str(path), None  # nobody knows the other name
        raise


def make_folder(path: Path) -> None:
    """Make a folder, if it is not there. Those above it must be.

    Raises:
        NotADirectoryError: if a link or a file is there.
    """
    try:
        path.mkdir()
    except FileExistsError:
        if not is_folder(path):
            raise NotADirectoryError(
                errno.ENOTDIR, "it is a link or a file, and should be a folder", str(path)
            ) from None


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a link to one is none."""
    return path.is_dir() and not path.is_symlink()


class Part(io.RawIOBase):
    """Some of the bytes of a file, as a file to read.

    Args:
        file: open to read, and to seek. It stays open.
        start: the first byte.
        length: the number of bytes.
    """

    def __init__(self, file: io.BufferedReader, start: int, length: int) -> None:
        self._file, self._start, self._length, self._place = file, start, length, 0

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read from any place: yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place: from the start, from where it is, or from the end."""
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "a place before the start")
        self._place = place
        return place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the place on; return the number of bytes."""
        count = max(0, min(len(buffer), self._length - self._place))
        self._file.seek(self._start + self._place)
        content = memoryview(buffer)[:count]
        done = self._file.readinto(content)
        self._place += done
        return done
