"""Rows of an orthonormal update brought to one size over time (NorMuon, arXiv 2510.05491, algorithm 1)."""

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import decay, number
from orthon.algorithms.state import Entries, Entry
from orthon.sharding import Step

ROW_OPTIONS = {
    "beta2": decay(0.95),
    "eps": number(1e-8, "> 0", lambda v: 0 < v < float("inf")),
}


def row_moments() -> Entries:
    """Return the state: a zero second moment for each row (m, 1), in float32."""
    return {"row_moment": Entry(side=0, width=1, dtype=torch.float32)}


def row_gains(
    batch: Batch, squares: Tensor, *, length: int | None = None, chosen: Tensor | None = None
) -> Step[Tensor]:
    """Return by what to multiply each row of an update O, (b, m), as the weights have rows.

    v ← beta2·v + (1 − beta2)·mean_j O²
    gain ← 1 / (√v + eps), then all gains of a matrix times one number, so that the norm of O does not change

    The mean of a row is over its whole length, and the norm is that of the whole matrix, on whatever ranks they lie.
    Rows that are zero remain so.

    Args:
        batch: with a state "row_moment", and the options "beta2" and "eps".
        squares: sums of the squares of this rank's part of each row, (b, m), in float32 or better.
        length: of the whole rows; None for that of the rows of the weights.
        chosen: 1 for the rows that are updated, (b, m), and 0 for the others, whose state stays; None for all.
    """
    layout, options = batch.layout, batch.options
    length = layout.shape[1] if length is None else length
    v = batch.stacked("row_moment").squeeze(-1)  # (b, m)
    squares = yield from layout.grid.along(layout.cuts[1]).sum(squares)
    news = (squares / length).to(v.dtype).sub_(v).mul_(1 - options["beta2"])
    with batch.writing:
        v.add_(batch.gated(news if chosen is None else news.mul_(chosen)))
    gains = 1 / (v.to(squares.dtype).sqrt() + options["eps"])
    norms = torch.stack([squares.sum(-1), (squares.sqrt() * gains).square().sum(-1)], dim=-1)  # (b, 2)
    before, after = (yield from layout.grid.along(layout.cuts[0]).sum(norms)).unbind(-1)
    rescaled: Tensor = gains * torch.where(after > 0, (before / after).sqrt(), 0).unsqueeze(-1)
    return rescaled
