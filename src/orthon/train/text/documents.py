"""Documents from files: Python's own library, or what the user names."""

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from orthon.train.errors import UserError
from orthon.train.text.byte_corpus import Document

NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


def stdlib_documents() -> Iterator[Document]:
    """The source files of Python's standard library, in the order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not NOT_STDLIB.intersection(relative.parts) and path.is_file():
            yield relative.as_posix(), _read(path)


def text_documents(paths: Sequence[str]) -> Iterator[Document]:
    """All files that are named or lie in a named directory, however deep; hidden ones there are left out.

    Raises:
        UserError: A path does not exist or cannot be read.
    """
    for path, name in find_files(paths, "*"):
        yield name, _read(path)


def find_files(paths: Sequence[str], pattern: str) -> Iterator[tuple[Path, str]]:
    """Files that are named, or match the pattern in a named directory, with names relative to what was named.

    Raises:
        UserError: A path does not exist.
    """
    for named in map(Path, paths):
        if named.is_dir():
            for path in sorted(named.rglob(pattern)):
                relative = path.relative_to(named)
                if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                    yield path, relative.as_posix()
        elif named.exists():
            yield named, named.name
        else:
            raise UserError(f"data.paths: there is no file or directory {named}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
