"""Training sequences, and the order in which a run reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orthon.train.errors import UserError
from orthon.train.text.tokens import Piece, count
from orthon.train.text.vocabulary import beyond

Indices = NDArray[np.int64]


class Windows:
    """Windows of `context` tokens that do not overlap, each with the token after it (the first of the next window).

    Args:
        pieces: the text. Tokens at the end of a piece that do not fill a window are never read.
        context: number of tokens that the model reads in one sequence.
        vocab_size: every token must be below it.
        name: name of the text, for errors.

    Raises:
        UserError: the text is shorter than one window.
    """

    def __init__(self, pieces: Sequence[Piece], context: int, vocab_size: int, name: str) -> None:
        self.pieces, self.context, self.vocab_size = pieces, context, vocab_size
        counts = [max(len(piece.tokens) - 1, 0) // context for piece in pieces]
        self.first = np.cumsum([0, *counts])  # for each piece the number of its first window; and the total
        if not len(self):
            every = "every piece of " if len(pieces) > 1 else ""
            raise UserError(
                f"{every}the {name} text ({count(pieces):,} tokens) is shorter than one sequence "
                f"({context + 1} tokens: model.context and the one after it)"
            )

    def __len__(self) -> int:
        return int(self.first[-1])

    def read(self, indices: Indices) -> Tensor:
        """Return the windows with these numbers, int64, (len(indices), context + 1).

        Raises:
            UserError: a token is not below the vocabulary size.
        """
        rows = np.empty((len(indices), self.context + 1), np.int64)
        for row, index in zip(rows, indices, strict=True):
            number = int(np.searchsorted(self.first, index, side="right")) - 1
            start = int(index - self.first[number]) * self.context
            row[:] = self.pieces[number].tokens[start : start + self.context + 1]
            if row.max() >= self.vocab_size:
                raise UserError(beyond(self.pieces[number].name, int(row.max()), self.vocab_size))
        return torch.from_numpy(rows)

    def spread(self, number: int) -> Indices:
        """Return the numbers of up to `number` different windows, spread evenly over the whole text."""
        return np.unique(np.linspace(0, len(self) - 1, min(number, len(self))).round().astype(np.int64))


@dataclass
class BatchOrder:
    """Which windows make the batch of a step. It depends on seed and step alone, so a checkpoint need not save it.

    Each epoch has its own permutation of all windows. A batch may begin in one epoch and end in the next.
    """

    windows: int  # number of windows in the text
    batch_size: int  # windows in one step, over all ranks
    seed: int

    def __post_init__(self) -> None:
        self._epoch, self._permutation = -1, np.empty(0, np.int64)  # the epoch in use

    def indices(self, step: int, rank: int = 0, world: int = 1) -> Indices:
        """Return the windows of one rank in step `step`, counted from 0. Each rank has a block of consecutive ones."""
        start, stop = (step * self.batch_size + self.batch_size * part // world for part in (rank, rank + 1))
        positions = range(start, stop)
        return np.array([self._at(position) for position in positions], np.int64)

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.windows)
        if epoch != self._epoch:
            # Philox has an independent stream of random numbers for each key.
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epoch, self._permutation = epoch, generator.permutation(self.windows)
        return int(self._permutation[place])
