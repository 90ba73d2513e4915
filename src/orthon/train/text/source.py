"""A source of documents: what it is, how much there is, and its passages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthon.train.errors import UserError
from orthon.train.text.passages import Passage


@dataclass(frozen=True)
class Source:
    """Documents that can be read as often as needed, in the same order each time."""

    description: str
    total: int  # what all its passages have read together, in bytes or rows
    passages: Callable[[], Iterator[Passage]]  # from the first one on
    mark: list[Any]  # plain values; they change when files do


def mark_of(path: Path, name: str) -> list[Any]:
    """Name, size and times of a file. Whoever changes the content changes these, too.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return [name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
