"""The kinds that every source of text returns: pieces of tokens, and a corpus of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens. No training sequence reaches from one piece into another."""

    name: str  # for errors
    tokens: Tokens


@dataclass(frozen=True)
class Corpus:
    """Training and held-out text."""

    description: str
    train: tuple[Piece, ...]
    held_out: tuple[Piece, ...]
    vocab_size: int
    is_bytes: bool  # each token is a byte, so tokens can be shown as text
    fingerprint: str  # of the content; a run continues only with the text that it began with

    def decode(self, tokens: Sequence[int]) -> str:
        """The tokens as text; or as numbers, if the corpus does not know the text of a token."""
        if self.is_bytes:
            return bytes(tokens).replace(b"\0", b"\n").decode("utf-8", errors="replace")
        return " ".join(map(str, tokens))


def count(pieces: Sequence[Piece]) -> int:
    """Number of tokens in all pieces."""
    return sum(len(piece.tokens) for piece in pieces)
