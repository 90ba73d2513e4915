"""Documents from Python's standard library, from files, or from a Hugging Face data set."""

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
    """All files that are named, and all in a named directory and below it. Hidden files there are left out.

    Raises:
        UserError: A path does not exist or cannot be read.
    """
    for path, name in find_files(paths, "*"):
        yield name, _read(path)


def hf_documents(name: str, subset: str | None, split: str, text_column: str) -> Iterator[Document]:
    """The rows of a data set. It is downloaded when first used, and held in memory.

    Raises:
        UserError: `datasets` is not installed, the data set cannot be loaded, or it has no such text column.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.source hf needs an extra: pip install 'orthon[datasets]'") from error
    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # network, hub and format errors of many kinds
        raise UserError(f"cannot load the data set {name}: {' '.join(str(error).split())}") from error
    if text_column not in rows.column_names:
        raise UserError(f"data.text_column must be one of {', '.join(rows.column_names)} but is {text_column!r}")
    for number, text in enumerate(rows[text_column]):
        if not isinstance(text, str):
            raise UserError(f"data.text_column {text_column!r} of {name} must hold text, but row {number} does not")
        yield f"row {number}", text.encode()


def find_files(paths: Sequence[str], pattern: str) -> Iterator[tuple[Path, str]]:
    """Files that are named, and files in a named directory that match the pattern; each with its name for the corpus.

    The name is the path from the named directory on, so it does not depend on the machine.

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
