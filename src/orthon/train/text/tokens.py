"""The kinds that every source of text returns: pieces of tokens, and a corpus of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


def as_numbers(tokens: Sequence[int]) -> str:
    """Tokens whose text is not known, as numbers."""
    return " ".join(map(str, tokens))


def bytes_as_text(tokens: Sequence[int]) -> str:
    """Tokens that are bytes, as text."""
    return bytes(tokens).replace(b"\0", b"\n").decode("utf-8", errors="replace")


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
    fingerprint: str  # of the content; a run continues only with the text that it began with
    decode: Callable[[Sequence[int]], str] = as_numbers  # tokens as text


def amount(number: int) -> str:
    """Return a number of tokens as a person reads it: 940, or 1.25 M."""
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def count(pieces: Sequence[Piece]) -> int:
    """Return the number of tokens in all pieces."""
    return sum(len(piece.tokens) for piece in pieces)
