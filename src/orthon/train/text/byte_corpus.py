"""Join documents to a training text and a held-out text, both of bytes."""

import hashlib
from collections.abc import Iterable

import numpy as np

from orthon.train.errors import UserError
from orthon.train.text.tokens import Corpus, Piece

Document = tuple[str, bytes]  # a name that does not depend on the machine, and the content

HELD_OUT_SHARE = 0.05
FEWEST_TO_SPLIT_BY_DOCUMENT = 20  # of fewer, one in twenty may be far from 5 % of the text


def byte_corpus(source: str, documents: Iterable[Document]) -> Corpus:
    """Join documents to a training text and a held-out text. A NUL byte follows each document.

    Whether a document is held out depends on its name alone, so other documents do not change it. If there are only
    a few documents, the end of their joined text is held out instead.

    Raises:
        UserError: There is no text.
    """
    filled = [(name, content) for name, content in documents if content]
    if not filled:
        raise UserError(f"there is no text in {source}")
    train = [content for name, content in filled if not is_held_out(name)]
    held_out = [content for name, content in filled if is_held_out(name)]
    how = f"{len(held_out)} of {len(filled)} documents"
    if len(filled) < FEWEST_TO_SPLIT_BY_DOCUMENT or not train or not held_out:
        text = _join([content for _, content in filled])
        cut = round(len(text) * (1 - HELD_OUT_SHARE))
        return _corpus(source, text[:cut], text[cut:], f"the last {HELD_OUT_SHARE:.0%} of the text")
    return _corpus(source, _join(train), _join(held_out), how)


def is_held_out(name: str) -> bool:
    """Whether the document with this name belongs to the held-out text."""
    number = int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())
    return number < HELD_OUT_SHARE * 2**64


def _join(contents: list[bytes]) -> bytes:
    return b"".join(content + b"\0" for content in contents)


def _corpus(source: str, train: bytes, held_out: bytes, how: str) -> Corpus:
    fingerprint = hashlib.blake2b(hashlib.blake2b(train).digest() + held_out, digest_size=16).hexdigest()
    return Corpus(
        description=f"{source}, {len(train) / 1e6:.2f} MB; held out: {how}, {len(held_out) / 1e6:.2f} MB",
        train=(Piece("the training text", np.frombuffer(train, np.uint8)),),
        held_out=(Piece("the held-out text", np.frombuffer(held_out, np.uint8)),),
        vocab_size=256,
        is_bytes=True,
        fingerprint=fingerprint,
    )
