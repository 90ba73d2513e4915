"""What to make tokens of, and under which key the result is known."""

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from orthon.train.errors import UserError
from orthon.train.settings.data import DataConfig
from orthon.train.text.documents import stdlib_source, text_source
from orthon.train.text.files import Named
from orthon.train.text.jsonl import jsonl_source
from orthon.train.text.passages import LONGEST, Passage
from orthon.train.text.source import Source
from orthon.train.text.split import split
from orthon.train.text.tables import hf_source, parquet_source, saved_source
from orthon.train.text.tokenizer import open_tokenizer
from orthon.train.text.tokenizing import Job

RULES = 1  # number of the rules by which passages, splits and tokens are made


def open_source(data: DataConfig, own: Collection[Path] = ()) -> tuple[Source, Source | None]:
    """Return the source that the settings name, and the one to hold out if they name that, too.

    Args:
        data: settings.
        own: directories that the command writes; they are no text.

    Raises:
        UserError: a path is missing or cannot be read.
    """
    if data.source == "stdlib":
        return stdlib_source(), None
    if data.source == "hf":
        assert data.name is not None
        return hf_source(data.name, data.subset, data.split, data.text_column), None
    written = {path.resolve() for path in own}
    if data.held_out_paths is None:
        return _of_paths(data, Named(data.paths, own=written)), None
    held_out = Named(data.held_out_paths, "data.held_out_paths", own=written)
    others = _of_paths(data, Named(data.paths, without=held_out.resolved(), own=written))
    if not others.total:
        raise UserError("there is no text in data.paths that is not in data.held_out_paths as well")
    return others, _of_paths(data, held_out)


def text_job(data: DataConfig, *, per_shard: int, own: Collection[Path] = ()) -> Job:
    """Return the job of making tokens of the text that the settings name.

    Args:
        data: settings, with a tokenizer.
        per_shard: tokens in a shard.
        own: directories that the command writes; they are no text.

    Raises:
        UserError: the text or the tokenizer cannot be read.
    """
    assert data.tokenizer is not None
    tokenizer = open_tokenizer(data.tokenizer, data.document_end)
    source, held_out = open_source(data, own)

    def parts() -> Iterator[tuple[Passage, bool]]:
        if held_out is None:
            yield from split(source.passages)
            return
        yield from ((passage, True) for passage in held_out.passages())
        yield from ((passage, False) for passage in source.passages())

    names: list[Any] = [RULES, LONGEST, tokenizer.digest, per_shard, data.source, data.split, data.text_column]
    marks = [source.mark, None if held_out is None else held_out.mark]
    return Job(
        key=hashlib.blake2b(json.dumps([names, marks]).encode(), digest_size=16).hexdigest(),
        source=source.description,
        total=source.total + (0 if held_out is None else held_out.total),
        parts=parts,
        tokenizer=tokenizer,
        per_shard=per_shard,
    )


def _of_paths(data: DataConfig, named: Named) -> Source:
    """Return the source that paths hold.

    Raises:
        UserError: a path cannot be read, or directories hold no file of this kind.
    """
    source = _opened(data, named)
    if not (source.mark or named.without):
        kind = {"jsonl": ".jsonl file", "parquet": ".parquet file"}.get(data.source, "file")
        raise UserError(f"{named.setting} hold no {kind}: {', '.join(named.paths)}")
    return source


def _opened(data: DataConfig, named: Named) -> Source:
    if data.source == "jsonl":
        return jsonl_source(named, data.text_column)
    if data.source == "parquet":
        return parquet_source(named, data.text_column)
    if data.source == "saved":
        return saved_source(named, data.text_column, data.split)
    return text_source(named)
