"""Token shards: `.bin` files of uint16 tokens, as nanoGPT-style projects write them. They are mapped into memory."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orthon.train.errors import UserError
from orthon.train.text.documents import find_files
from orthon.train.text.tokens import Corpus, Piece, Tokens, count

MAGIC = 20240520
VERSION = 1
HEADER = np.dtype("<i4")  # magic, version, number of tokens, and zeros
HEADER_NUMBERS = 256
TOKEN = np.dtype("<u2")


def shard_corpus(paths: Sequence[str], vocab_size: int) -> Corpus:
    """All shards that are named, and all in a named directory. Those with 'val' in their name are held out.

    Raises:
        UserError: A path does not exist, a shard is damaged, or one of the two parts has no shard.
    """
    pieces = [(path, Piece(str(path), open_shard(path))) for path, _ in find_files(paths, "*.bin")]
    train = tuple(piece for path, piece in pieces if "val" not in path.name)
    held_out = tuple(piece for path, piece in pieces if "val" in path.name)
    if not train:
        raise UserError(
            f"data.paths hold no training shard: no .bin file without 'val' in its name in {', '.join(paths)}"
        )
    if not held_out:
        raise UserError(f"data.paths hold no held-out shard: no .bin file with 'val' in its name in {', '.join(paths)}")
    sizes = "\n".join(f"{path.name} {len(piece.tokens)}" for path, piece in pieces)
    return Corpus(
        description=(
            f"{len(train)} shards, {count(train) / 1e6:.2f} M tokens; "
            f"held out: {len(held_out)} shards, {count(held_out) / 1e6:.2f} M tokens"
        ),
        train=train,
        held_out=held_out,
        vocab_size=vocab_size,
        is_bytes=False,
        # From names and lengths alone, as it takes long to read a large data set.
        fingerprint=hashlib.blake2b(sizes.encode(), digest_size=16).hexdigest(),
    )


def open_shard(path: Path) -> Tokens:
    """The tokens of one shard, with or without a header. The file is mapped, not read.

    Raises:
        UserError: The shard cannot be read, has an unknown version, or has another length than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_NUMBERS * HEADER.itemsize), np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    offset = 0
    if len(header) == HEADER_NUMBERS * HEADER.itemsize and header.view(HEADER)[0] == MAGIC:
        version, tokens = (int(number) for number in header.view(HEADER)[1:3])
        if version != VERSION:
            raise UserError(f"{path} has version {version} of the shard format, but only {VERSION} is read")
        offset = len(header)
        if size != offset + tokens * TOKEN.itemsize:
            raise UserError(
                f"{path} is damaged: its header says {tokens} tokens, but it holds {(size - offset) / TOKEN.itemsize:g}"
            )
    elif size % TOKEN.itemsize:
        raise UserError(f"{path} is damaged: {size} bytes are no whole number of uint16 tokens")
    if size == offset:
        return np.empty(0, np.uint16)
    return np.memmap(path, TOKEN, "r", offset)
