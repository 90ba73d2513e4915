"""Documents from Python's standard library, and from text files. A file is a document."""

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from orthon.train.errors import UserError
from orthon.train.text.files import Named, find_files
from orthon.train.text.passages import LONGEST, Passage, passages
from orthon.train.text.source import Source, mark_of

# How files begin that are no text of bytes, and what they are.
PACKED = {
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"\xfd7zXZ\0": "packed by xz; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "text in UTF-16; save it in UTF-8",
    b"\xfe\xff": "text in UTF-16; save it in UTF-8",
}
NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


def stdlib_source() -> Source:
    """Return the source files of Python's standard library, in the order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [(path, path.relative_to(root)) for path in sorted(root.rglob("*.py"))]
    files = [
        (path, relative.as_posix())
        for path, relative in found
        if not NOT_STDLIB.intersection(relative.parts) and path.is_file()
    ]
    return _source("Python's standard library", files)


def text_source(named: Named) -> Source:
    """Return all files that are named, and all in a named directory and below it. Hidden files there are left out.

    Raises:
        UserError: a path does not exist or cannot be read.
    """
    return _source("text files", list(find_files(named, "*")))


def _source(description: str, files: Sequence[tuple[Path, str]]) -> Source:
    mark = [mark_of(path, name) for path, name in files]

    def read() -> Iterator[Passage]:
        for path, name in files:
            yield from passages(name, _blocks(path))

    return Source(description, sum(size for _, size, *_ in mark), read, mark)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for start, kind in PACKED.items():
                if file.peek(len(start)).startswith(start):
                    raise UserError(f"{path} is {kind}")
            while block := file.read(LONGEST):
                yield block
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
