"""Make tokens of a text and write them to shards. After an interruption it goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from orthon.train.errors import UserError
from orthon.train.results.directory import replace_file
from orthon.train.results.records import STRICT, Count, read_record
from orthon.train.text.passages import Passage
from orthon.train.text.shard_format import OF_BITS, ShardFormat
from orthon.train.text.shard_writer import ShardWriter
from orthon.train.text.tokenizer import Tokenizer

STATE = "state.json"
BATCH_BYTES = 2**22  # of text that the tokenizer gets at once, to divide it among its threads
SAVE_EVERY = 2**24  # tokens from one state on the disk to the next


@dataclass(frozen=True, kw_only=True)
class State:
    """How far it is. Shards are right up to these numbers of tokens."""

    __pydantic_config__ = STRICT

    key: str  # of what is made
    passages: Count = 0  # that are done
    train: Count = 0  # tokens
    held_out: Count = 0
    digest: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""  # of the tokens so far


@dataclass(frozen=True)
class Job:
    """What is to be made.

    Attributes:
        key: equal for jobs that make the same shards.
        source: in words.
        total: what all passages have read together.
        parts: reads all passages from the beginning, each with whether it is held out.
        tokenizer: makes the tokens.
        per_shard: tokens in a shard.
    """

    key: str
    source: str
    total: int
    parts: Callable[[], Iterator[tuple[Passage, bool]]]
    tokenizer: Tokenizer
    per_shard: int

    @property
    def form(self) -> ShardFormat:
        """The format of the shards: the shortest tokens that the vocabulary allows."""
        return OF_BITS[16 if self.tokenizer.vocab_size <= 2**16 else 32]


def read_state(folder: Path, key: str) -> State:
    """Return how far a job is in a folder; a new state if it has not begun.

    Raises:
        UserError: the folder holds the beginning of another job, or what is no state.
    """
    path = folder / STATE
    try:
        state = read_record(State, path)
    except FileNotFoundError:
        return State(key=key)
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete {folder}") from error
    if state.key != key:
        raise UserError(f"{folder} holds the beginning of other tokens; delete it, or choose another --out")
    return state


def write_tokens(folder: Path, job: Job, state: State, advance: Callable[[int], None]) -> State:
    """Write all shards of a job.

    Args:
        folder: where they are, with what an interrupted process has left.
        job: what to make.
        state: how far it is, from `read_state`.
        advance: called with what has been read, in the unit of the job's total.

    Returns:
        The last state.

    Raises:
        UserError: the text cannot be read, or one of the two parts is empty.
    """
    writers = [
        ShardWriter(
            folder,
            part,
            form=job.form,
            vocab_size=job.tokenizer.vocab_size,
            per_shard=job.per_shard,
            written=written,
        )
        for part, written in (("train", state.train), ("val", state.held_out))
    ]
    done, digest, saved = state.passages, bytes.fromhex(state.digest), state.train + state.held_out

    def save() -> State:
        for writer in writers:
            writer.save()
        train, held_out = (writer.written for writer in writers)
        now = State(key=job.key, passages=done, train=train, held_out=held_out, digest=digest.hex())
        replace_file(folder / STATE, json.dumps(asdict(now)) + "\n")
        return now

    with ExitStack() as stack:
        for writer in writers:
            stack.callback(writer.close)
        parts = job.parts()
        for passage, _ in islice(parts, done):
            advance(passage.read)
        for batch in _batches(parts):
            encoded = job.tokenizer.encode([passage.content for passage, _ in batch])
            for (passage, held_out), tokens in zip(batch, encoded, strict=True):
                if passage.ends and job.tokenizer.end is not None:
                    tokens = np.append(tokens, np.uint32(job.tokenizer.end))
                writers[held_out].append(tokens)
                # As a chain, which can go on after an interruption.
                digest = hashlib.blake2b(digest + bytes([held_out]) + tokens.tobytes(), digest_size=16).digest()
                advance(passage.read)
            done += len(batch)
            if sum(writer.written for writer in writers) - saved >= SAVE_EVERY:
                now = save()
                saved = now.train + now.held_out
        for part, writer in zip(("training", "held-out"), writers, strict=True):
            if not writer.written:
                raise UserError(f"there is no {part} text in {job.source}")
        return save()


def _batches(parts: Iterator[tuple[Passage, bool]]) -> Iterator[list[tuple[Passage, bool]]]:
    batch: list[tuple[Passage, bool]] = []
    size = 0
    for passage, held_out in parts:
        batch.append((passage, held_out))
        size += len(passage.content)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
