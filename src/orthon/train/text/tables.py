"""Documents from tables: Parquet files, folders of `save_to_disk`, and data sets of the Hugging Face hub."""

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from orthon.train.errors import UserError
from orthon.train.text.files import Named, find_files
from orthon.train.text.hub import hub
from orthon.train.text.passages import Passage
from orthon.train.text.rows import require_column, row_passages
from orthon.train.text.source import Source, mark_of

ROWS_AT_ONCE = 256
SAVED = ("state.json", "dataset_dict.json")  # files by which a folder of save_to_disk is known


def parquet_source(named: Named, column: str) -> Source:
    """Return the rows of all files that are named, and of all `.parquet` files in a named directory and below it.

    Args:
        named: files or directories.
        column: the one that holds the text.

    Raises:
        UserError: `pyarrow` is not installed, a file cannot be read, or it has no such column of text.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise _needs_extra("parquet") from error
    files = list(find_files(named, "*.parquet"))
    total = 0
    for path, _ in files:
        try:
            with parquet.ParquetFile(path) as file:
                total += file.metadata.num_rows
                require_column(column, file.schema_arrow.names, f"{path}: ")
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(path, error) from error

    def read() -> Iterator[Passage]:
        for path, name in files:
            number = 0
            try:
                with parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                        for text in batch.column(0).to_pylist():
                            where = f"{path} must hold text, but row {number}"
                            yield from row_passages(f"{name}:{number}", text, where, column, read=1)
                            number += 1
            except (OSError, pyarrow.ArrowException) as error:
                raise _unreadable(path, error) from error

    return Source("Parquet files", total, read, [mark_of(path, name) for path, name in files])


def saved_source(named: Named, column: str, split: str) -> Source:
    """Return the rows of folders that `save_to_disk` of `datasets` has written. They are mapped into memory.

    Args:
        named: the folders.
        column: the one that holds the text.
        split: which one to read, of a folder that holds several.

    Raises:
        UserError: `datasets` is not installed, a folder is no such one, or it has no such split or column of text.
    """
    datasets = _import_datasets("saved")
    folders = {Path(path).resolve(): Path(path) for path in reversed(named.paths)}  # each once
    tables: list[tuple[str, Any]] = []
    mark: list[Any] = []
    for real, folder in reversed(folders.items()):
        if real in named.without:
            continue
        if not any((folder / name).is_file() for name in SAVED):
            raise UserError(f"{named.setting} must name folders that save_to_disk has written, but {folder} is none")
        try:
            table = datasets.load_from_disk(str(folder))
        except Exception as error:  # format errors of many kinds
            raise _unreadable(folder, error) from error
        if isinstance(table, dict):
            if split not in table:
                raise UserError(f"data.split must be one of {', '.join(table)} in {folder} but is {split!r}")
            table = table[split]
        require_column(column, table.column_names, f"{folder}: ")
        tables.append((str(folder), table))
        mark += [mark_of(path, path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*"))]

    def read() -> Iterator[Passage]:
        for folder, table in tables:
            yield from _rows(table, column, f"{Path(folder).name}:", folder)

    return Source("saved data sets", sum(len(table) for _, table in tables), read, mark)


def hf_source(name: str, subset: str | None, split: str, column: str) -> Source:
    """Return the rows of a data set of the hub. It is downloaded when first used.

    Raises:
        UserError: `datasets` is not installed, the data set cannot be loaded, or it has no such column of text.
    """
    datasets = _import_datasets("hf")
    with nullcontext() if Path(name).exists() else hub() as unreachable:
        try:
            rows = datasets.load_dataset(name, subset, split=split)
        except Exception as error:  # network, hub and format errors of many kinds
            reason = unreachable or " ".join(str(error).split())
            raise UserError(f"cannot load the data set {name}: {reason}") from error
    require_column(column, rows.column_names)

    def read() -> Iterator[Passage]:
        return _rows(rows, column, "row ", name)

    files = [Path(entry["filename"]) for entry in getattr(rows, "cache_files", [])]
    marks = [mark_of(path, path.name) for path in files] or _digest(read())
    return Source(name, len(rows[column]), read, [name, subset, split, marks])


def _rows(table: Any, column: str, prefix: str, where: str) -> Iterator[Passage]:
    for number, text in enumerate(table[column]):
        yield from row_passages(f"{prefix}{number}", text, f"{where} must hold text, but row {number}", column, read=1)


def _digest(passages: Iterator[Passage]) -> str:
    """Of rows that no file holds, but memory alone."""
    digest = hashlib.blake2b(digest_size=16)
    for passage in passages:
        digest.update(hashlib.blake2b(passage.content).digest() + bytes([passage.ends]))
    return digest.hexdigest()


def _import_datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise _needs_extra(source) from error
    return datasets


def _needs_extra(source: str) -> UserError:
    return UserError(f"data.source {source} needs an extra: pip install 'orthon[datasets]'")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {' '.join(str(error).split())}")
