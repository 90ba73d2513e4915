"""Hops of matrices of which only some rows are sent, from each rank as many as lie in its part."""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.sharding.hops import Hop
from orthon.sharding.spans import Span


def counts(hop: Hop, rows: Sequence[int]) -> list[int]:
    """Return how many of some rows lie in each part of a matrix, by the rank that has the part.

    Args:
        hop: with the parts.
        rows: ascending.
    """
    edges = torch.tensor([box.rows for box in hop.boxes], device="cpu")
    found = torch.searchsorted(torch.tensor(rows, dtype=torch.long, device="cpu"), edges)
    result: list[int] = (found[:, 1] - found[:, 0]).tolist()
    return result


def counts_of_mine(hop: Hop, rows_of: Sequence[Sequence[int]]) -> list[int]:
    """Return for each matrix how many of its selected rows lie in the part of this rank."""
    start, stop = hop.mine.rows
    return [bisect_left(rows, stop) - bisect_left(rows, start) for rows in rows_of]


def joined(hop: Hop, message: Tensor, counts_of: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the selected rows (k, n) of whole matrices.

    Args:
        hop: with the parts of the matrices.
        message: from each rank its parts of all matrices.
        counts_of: for each matrix how many rows come from each rank.
    """
    shapes = [(of_matrix[slot], box.cols.length) for slot, box in enumerate(hop.boxes) for of_matrix in counts_of]
    pieces = torch.split(message, [rows * cols for rows, cols in shapes]) if shapes else ()
    parts = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    whole, n = [], len(counts_of)
    for which in range(n):
        columns = [torch.cat([parts[slot * n + which] for slot in slots]) for slots in _columns(hop).values()]
        whole.append(columns[0] if len(columns) == 1 else torch.cat(columns, dim=1))
    return whole


def divided(hop: Hop, wholes: Sequence[Tensor], counts_of: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """Return for each rank its parts of the selected rows of whole matrices.

    Args:
        hop: with the parts of the matrices.
        wholes: the selected rows (k, n) of each.
        counts_of: for each matrix how many rows go to each rank.
    """
    parts: list[list[Tensor]] = [[] for _ in hop.boxes]
    for whole, of_matrix in zip(wholes, counts_of, strict=True):
        for cols, slots in _columns(hop).items():
            start = cols.start - hop.whole.cols.start
            columns = whole[:, start : start + cols.length].contiguous()
            for slot, part in zip(slots, torch.split(columns, [of_matrix[slot] for slot in slots]), strict=True):
                parts[slot].append(part)
    return parts


def _columns(hop: Hop) -> dict[Span, list[int]]:
    """Return for each range of columns which ranks have parts with these, in the order of their rows."""
    found: dict[Span, list[int]] = {}
    order = sorted(range(len(hop.boxes)), key=lambda slot: hop.boxes[slot].rows)
    for slot in order:
        found.setdefault(hop.boxes[slot].cols, []).append(slot)
    return dict(sorted(found.items()))
