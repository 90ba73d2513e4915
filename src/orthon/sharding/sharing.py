"""Several exchanges in one: how their numbers are mixed before they are sent, and parted where they arrive."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor


class Sharing:
    """How many numbers of each of several exchanges go to every rank, or come from it.

    In the common message, numbers of lower ranks come first, and those of one rank in the order of the exchanges. Ranks
    in a row that are alike are handled together, so that it takes few operations however many ranks there are.

    Args:
        lengths_of: for each exchange the numbers by ascending rank.

    Attributes:
        lengths: of the common message, by ascending rank.
    """

    def __init__(self, lengths_of: Sequence[Sequence[int]]) -> None:
        self.lengths: list[int] = list(map(sum, zip(*lengths_of, strict=True)))
        self._count = len(lengths_of)
        # How many ranks in a row are alike, and which exchanges have how many numbers for each of them.
        self._runs = [
            (len(list(same)), [(which, length) for which, length in enumerate(each) if length])
            for each, same in groupby(zip(*lengths_of, strict=True))
        ]

    def mixed(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the common message of the numbers of each exchange, (numbers,) each."""
        if self._count == 1:
            return parts[0]
        starts, pieces = [0] * self._count, []
        for ranks, lengths in self._runs:
            rows = []
            for which, length in lengths:
                start = starts[which]
                starts[which] = start + ranks * length
                rows.append(parts[which][start : start + ranks * length].view(ranks, length))
            if rows:
                pieces.append((rows[0] if len(rows) == 1 else torch.cat(rows, 1)).view(-1))
        if not pieces:
            return parts[0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def parted(self, message: Tensor) -> list[Tensor]:
        """Return the numbers of each exchange in a common message."""
        if self._count == 1:
            return [message]
        pieces: list[list[Tensor]] = [[] for _ in range(self._count)]
        start = 0
        for ranks, lengths in self._runs:
            each = sum(length for _, length in lengths)
            block, column = message[start : start + ranks * each].view(ranks, each), 0
            for which, length in lengths:
                pieces[which].append(block[:, column : column + length].reshape(-1))
                column += length
            start += ranks * each
        return [torch.cat(those) if len(those) > 1 else those[0] if those else message[:0] for those in pieces]
