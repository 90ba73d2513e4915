"""Documents from JSONL files: one JSON object in each line, and a text in each object."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orthon.train.errors import UserError
from orthon.train.text.files import Named, find_files
from orthon.train.text.passages import Passage
from orthon.train.text.rows import require_column, row_passages
from orthon.train.text.source import Source, mark_of

LONGEST_LINE = 2**28  # bytes; a longer one is no text that somebody has written
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def jsonl_source(named: Named, column: str) -> Source:
    """Return the lines of all files that are named, and of all `.jsonl` files in a named directory and below it.

    Args:
        named: files or directories.
        column: key of the text in each object.

    Raises:
        UserError: a path does not exist or cannot be read. While reading: a line is not as above.
    """
    files = list(find_files(named, "*.jsonl"))
    mark = [mark_of(path, name) for path, name in files]

    def read() -> Iterator[Passage]:
        for path, name in files:
            for number, line in _lines(path):
                where = f"{path}, line {number},"
                row = _parsed(line, where)
                require_column(column, row, f"{where} ")
                yield from row_passages(
                    f"{name}:{number}", row[column], f"{path} must hold text, but line {number}", column, read=len(line)
                )

    return Source("JSONL files", sum(size for _, size, *_ in mark), read, mark)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1 on."""
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise UserError(f"{path}, line {number}, must be shorter than {LONGEST_LINE >> 20} MiB but is not")
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} must be JSON but is {line[:40]!r}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} must be a JSON object but is {line[:40]!r}")
    return row
