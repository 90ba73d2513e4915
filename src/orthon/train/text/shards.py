"""Token shards: `.bin` files of 16- or 32-bit tokens, with or without a header. They are mapped into memory."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from orthon.train.errors import UserError
from orthon.train.text.files import Named, find_files
from orthon.train.text.shard_format import HEADER_BYTES, OF_BITS, ShardFormat, header_of, looks_like_32_bits
from orthon.train.text.tokenizer import Tokenizer
from orthon.train.text.tokens import Corpus, Piece, Tokens, amount, as_numbers, count
from orthon.train.text.vocabulary import beyond, vocabulary

LOOKED_AT = 2**16  # tokens at the beginning of a file without a header
CHECKED = 2**27  # tokens that are compared with the size of the vocabulary: 0.1 seconds
SAMPLED = 2**12  # tokens at the beginning, in the middle and at the end of a file, for the fingerprint

Bits = Literal[16, 32]


@dataclass(frozen=True)
class Shard:
    """One file."""

    path: Path
    tokens: Tokens
    form: ShardFormat
    vocab_size: int  # that its header tells, or 0
    has_header: bool


def shard_corpus(
    paths: Sequence[str],
    vocab_size: int | None,
    *,
    held_out_paths: Sequence[str] | None = None,
    bits: Bits | None = None,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Return all shards that are named, and all in a named directory.

    Args:
        paths: files or directories. Without `held_out_paths`, those with 'val' in their name are held out.
        vocab_size: number of different tokens. Default: that of the tokenizer, of the headers, or of their format.
        held_out_paths: files or directories to hold out. Then all others are trained on.
        bits: of a token in files without a header. Default: 16.
        tokenizer: tells the text of tokens.

    Raises:
        UserError: a path does not exist, a shard is damaged or unknown, or one of the two parts has no shard.
    """
    if held_out_paths is None:
        shards = [open_shard(path, bits) for path, _ in find_files(Named(paths), "*.bin")]
        train = [shard for shard in shards if "val" not in shard.path.name]
        held_out = [shard for shard in shards if "val" in shard.path.name]
        rule, held_out_rule = " without 'val' in its name", " with 'val' in its name"
    else:
        own = Named(held_out_paths, "data.held_out_paths")
        held_out = [open_shard(path, bits) for path, _ in find_files(own, "*.bin")]
        others = Named(paths, without=own.resolved())
        train = [open_shard(path, bits) for path, _ in find_files(others, "*.bin")]
        shards, rule, held_out_rule = train + held_out, "", ""
    if not train:
        raise UserError(f"data.paths hold no training shard: no .bin file{rule} in {', '.join(paths)}")
    if not held_out:
        setting = "data.paths" if held_out_paths is None else "data.held_out_paths"
        places = ", ".join(paths if held_out_paths is None else held_out_paths)
        raise UserError(f"{setting} hold no held-out shard: no .bin file{held_out_rule} in {places}")
    content = "\n".join(f"{shard.path.name} {len(shard.tokens)} {_sampled(shard.tokens)}" for shard in shards)
    parts = [tuple(Piece(str(shard.path), shard.tokens) for shard in part) for part in (train, held_out)]
    told = max(shard.vocab_size or shard.form.vocab_size for shard in shards)
    size = vocabulary(vocab_size, tokenizer) or told
    _check_tokens(shards, size)
    return Corpus(
        description=(
            f"{_files(len(train))}, {amount(count(parts[0]))} tokens; "
            f"held out: {_files(len(held_out))}, {amount(count(parts[1]))} tokens{_how_read(shards)}"
        ),
        train=parts[0],
        held_out=parts[1],
        vocab_size=size,
        fingerprint=hashlib.blake2b(os.fsencode(content), digest_size=16).hexdigest(),
        decode=as_numbers if tokenizer is None else tokenizer.decode,
    )


def open_shard(path: Path, bits: Bits | None = None) -> Shard:
    """One shard. The file is mapped, not read.

    Args:
        path: of the file.
        bits: of a token, if the file has no header. Default: 16.

    Raises:
        UserError: the shard cannot be read, has an unknown header, has another length than its header says, or seems
            to have 32-bit tokens but does not say so.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    known = header_of(start, path)
    if known is None:
        form, vocab_size = OF_BITS[bits or 16], 0
        if size % form.token.itemsize:
            raise UserError(f"{path} is damaged: {size} bytes are no whole number of uint{form.bits} tokens")
        mapped = _map(path, form, 0, size)
        if bits is None and looks_like_32_bits(np.asarray(mapped[:LOOKED_AT], np.uint16)):
            raise UserError(
                f"{path} has no header, and its tokens look like 32-bit ones; write --data.token-bits 32, or 16"
            )
        return Shard(path, mapped, form, vocab_size, has_header=False)
    form, tokens, vocab_size = known
    if size != HEADER_BYTES + tokens * form.token.itemsize:
        held = (size - HEADER_BYTES) / form.token.itemsize
        raise UserError(f"{path} is damaged: its header says {tokens} tokens, but it holds {held:g}")
    return Shard(path, _map(path, form, HEADER_BYTES, size), form, max(vocab_size, 0), has_header=True)


def _map(path: Path, form: ShardFormat, offset: int, size: int) -> Tokens:
    if size == offset:
        return np.empty(0, form.token)
    return np.memmap(path, form.token, "r", offset)


def _check_tokens(shards: Sequence[Shard], vocab_size: int) -> None:
    """Refuse tokens beyond the vocabulary before a run meets them in the middle. Of much text, beginnings are read.

    Raises:
        UserError: it names the shard and the token.
    """
    for shard in shards:
        largest = int(shard.tokens[: CHECKED // len(shards)].max(initial=0))
        if largest >= vocab_size:
            raise UserError(beyond(str(shard.path), largest, vocab_size))


def _sampled(tokens: Tokens) -> str:
    """Return a hash of some tokens, as it takes long to read a large data set."""
    hashed = hashlib.blake2b(digest_size=16)
    for start in (0, len(tokens) // 2, max(0, len(tokens) - SAMPLED)):
        hashed.update(np.asarray(tokens[start : start + SAMPLED]).tobytes())
    return hashed.hexdigest()


def _files(number: int) -> str:
    return f"{number} shard{'' if number == 1 else 's'}"


def _how_read(shards: Sequence[Shard]) -> str:
    """Return how files without a header are read, in words; nothing if all have one."""
    bare = Counter(shard.form.bits for shard in shards if not shard.has_header)
    return "".join(f"; {_files(number)} without a header, read as {bits}-bit tokens" for bits, number in bare.items())
