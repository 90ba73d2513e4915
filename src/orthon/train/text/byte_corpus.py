"""Join documents to a training text and a held-out text, both of bytes."""

import hashlib
from collections.abc import Iterable

import numpy as np

from orthon.train.errors import UserError
from orthon.train.text.passages import Document
from orthon.train.text.split import FEWEST_TO_SPLIT_BY_DOCUMENT, HELD_OUT_SHARE, is_held_out
from orthon.train.text.tokens import Corpus, Piece, bytes_as_text


def byte_corpus(
    source: str, documents: Iterable[Document], held_out_documents: Iterable[Document] | None = None
) -> Corpus:
    """Join documents to a training text and a held-out text. A NUL byte follows each document.

    Whether a document is held out depends on its name alone, so other documents do not change it. If there are only
    a few documents, the end of their joined text is held out instead.

    Args:
        source: where they come from, in words.
        documents: to train on.
        held_out_documents: to hold out. Then all others are trained on.

    Raises:
        UserError: there is no text.
    """
    filled = [(name, content) for name, content in documents if content]
    if not filled:
        raise UserError(f"there is no text in {source}")
    if held_out_documents is not None:
        own = [content for _, content in held_out_documents if content]
        if not own:
            raise UserError(f"there is no text in {source} of data.held_out_paths")
        train = [content for _, content in filled]
        return _corpus(source, _join(train), _join(own), f"{len(own)} documents of data.held_out_paths")
    train = [content for name, content in filled if not is_held_out(name)]
    held_out = [content for name, content in filled if is_held_out(name)]
    how = f"{len(held_out)} of {len(filled)} documents"
    if len(filled) < FEWEST_TO_SPLIT_BY_DOCUMENT or not train or not held_out:
        text = _join([content for _, content in filled])
        cut = round(len(text) * (1 - HELD_OUT_SHARE))
        return _corpus(source, text[:cut], text[cut:], f"the last {HELD_OUT_SHARE:.0%} of the text")
    return _corpus(source, _join(train), _join(held_out), how)


def _join(contents: list[bytes]) -> bytes:
    return b"".join(content + b"\0" for content in contents)


def _corpus(source: str, train: bytes, held_out: bytes, how: str) -> Corpus:
    fingerprint = hashlib.blake2b(hashlib.blake2b(train).digest() + held_out, digest_size=16).hexdigest()
    return Corpus(
        description=f"{source}, {len(train) / 1e6:.2f} MB; held out: {how}, {len(held_out) / 1e6:.2f} MB",
        train=(Piece("the training text", np.frombuffer(train, np.uint8)),),
        held_out=(Piece("the held-out text", np.frombuffer(held_out, np.uint8)),),
        vocab_size=256,
        fingerprint=fingerprint,
        decode=bytes_as_text,
    )
