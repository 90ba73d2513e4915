"""A folder of token shards with a note that it is whole. It gets its name only then."""

import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from orthon.saving.files import PART
from orthon.train.errors import UserError
from orthon.train.results.directory import replace_file
from orthon.train.results.records import STRICT, Positive, read_record
from orthon.train.text.shard_writer import shard_name
from orthon.train.text.shards import Shard, open_shard
from orthon.train.text.tokenizer import FILE
from orthon.train.text.tokenizing import STATE, Job, read_state, write_tokens
from orthon.train.text.writers_lock import LOCK, locked

NOTE = "tokens.json"

# From the job, what makes a progress display: a `with` block that gives a function to call with what has been read.
Progress = Callable[[Job], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a folder holds."""

    __pydantic_config__ = STRICT

    key: str  # of the job
    fingerprint: str  # of the tokens
    train: Positive  # tokens
    held_out: Positive
    per_shard: Positive


def make_token_folder(folder: Path, job: Job, progress: Progress, *, wait: bool) -> Note:
    """Do a job, unless its folder is there. What an interrupted process has begun is ended.

    All is written to a folder with the suffix `.part` beside it, which is then renamed.

    Args:
        folder: for the shards.
        job: what to make.
        progress: shows how far it is.
        wait: whether to wait for another process that makes the same folder.

    Raises:
        UserError: the folder holds something else, or the text cannot be read.
    """
    if (note := read_note(folder, job.key)) is not None:
        return note
    part = part_of(folder)
    with locked(part, wait=wait):
        if (note := read_note(folder, job.key)) is not None:  # made while this process waited
            _remove(part)
            return note
        note = _whole(part, job.key) or _write(part, job, progress)
        # From here on the note says that all is there, wherever this process ends.
        for path in part.iterdir():
            if path.name == STATE or (path.suffix == PART and _is_ours(path)):
                path.unlink()
        os.rename(part, folder)
        (folder / LOCK).unlink(missing_ok=True)
    return note


def part_of(folder: Path) -> Path:
    """Where the tokens of a folder are until they are whole."""
    return folder.with_name(folder.name + PART)


def _whole(part: Path, key: str) -> Note | None:
    """The note of a process that ended before it could rename the folder; None if there is no such note."""
    try:
        note = read_record(Note, part / NOTE)
    except (FileNotFoundError, ValueError):
        return None
    return note if note.key == key else None


def _write(part: Path, job: Job, progress: Progress) -> Note:
    """Write the shards, and the note when all are there.

    Raises:
        UserError: The folder holds something else, or the text cannot be read.
    """
    state = read_state(part, job.key)
    if not state.passages and (strangers := [path.name for path in part.iterdir() if not _is_ours(path)]):
        raise UserError(f"{part} holds other files ({strangers[0]}); move them, or choose another --out")
    with progress(job) as advance:
        try:
            state = write_tokens(part, job, state, advance)
        except UserError:
            if not (part / STATE).exists():  # nothing to go on with, and in the way of another text
                _remove(part)
            raise
    note = Note(
        key=job.key, fingerprint=state.digest, train=state.train, held_out=state.held_out, per_shard=job.per_shard
    )
    replace_file(part / FILE, job.tokenizer.content)
    replace_file(part / NOTE, json.dumps(asdict(note), indent=2) + "\n")
    return note


def read_note(folder: Path, key: str) -> Note | None:
    """Return what a folder holds; None if there is no such folder.

    Raises:
        UserError: it is a file, a link, not whole, or was made by another job.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} must be a folder but is a file or a symbolic link")
    if not folder.exists():
        return None
    try:
        note = read_record(Note, folder / NOTE)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder} is there, but holds no tokens that are whole; move it away") from error
    if note.key != key:
        raise UserError(f"{folder} holds other tokens, of another text or tokenizer; choose another --out")
    return note


def shards_of(folder: Path, note: Note) -> tuple[list[Shard], list[Shard]]:
    """Return the shards to train on, and those that are held out.

    Raises:
        UserError: one is missing, a link, or not as long as the note says.
    """
    return _shards(folder, "train", note.train, note), _shards(folder, "val", note.held_out, note)


def _shards(folder: Path, part: str, tokens: int, note: Note) -> list[Shard]:
    shards: list[Shard] = []
    held = 0
    while held < tokens:
        path = folder / shard_name(part, len(shards))
        if path.is_symlink():
            raise UserError(f"{path} must be a file but is a symbolic link")
        shard = open_shard(path)
        if not shard.has_header or len(shard.tokens) != min(note.per_shard, tokens - held):
            raise UserError(f"{path} has not the tokens that {NOTE} tells; delete {folder}")
        shards.append(shard)
        held += len(shard.tokens)
    return shards


def _remove(part: Path) -> None:
    """Remove a folder that has nothing but what was made here."""
    for path in filter(_is_ours, list(part.iterdir())):
        path.unlink()
    with suppress(OSError):  # another process has just made its lock
        part.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether a file has a name that is written here. `new_file` adds to it until the file is whole."""
    name = re.sub(rf"\.[0-9a-f]{{16}}\{PART}$", "", path.name)
    return name in (LOCK, STATE, FILE, NOTE) or re.fullmatch(r"(train|val)_[0-9]+\.bin", name) is not None
