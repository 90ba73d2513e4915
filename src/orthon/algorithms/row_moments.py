"""Rows of an orthonormal update brought to one size over time (NorMuon, arXiv 2510.05491, algorithm 1)."""

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group, number
from orthon.algorithms.state import Entries, Entry
from orthon.linalg import factor_dtype
from orthon.sharding import Step

ROW_OPTIONS = {
    "beta2": number(0.95, "in [0, 1)", lambda v: 0 <= v < 1),
    "eps": number(1e-8, "> 0", lambda v: 0 < v < float("inf")),
}


def row_moments() -> Entries:
    """Return the state: a zero second moment for each row (m, 1), in float32."""
    return {"row_moment": Entry(side=0, width=1, dtype=torch.float32)}


def normalized_rows(O: Tensor, batch: Batch, group: Group) -> Step[Tensor]:
    """Return O (b, m, n) with each row divided by its root mean square over time, and the Frobenius norm of O."""
    O = O.to(factor_dtype(O.dtype))
    gains = yield from row_gains(O.square().sum(-1), batch.layout.shape[1], None, batch, group)
    return O * gains.unsqueeze(-1)


def row_gains(squares: Tensor, length: int, chosen: Tensor | None, batch: Batch, group: Group) -> Step[Tensor]:
    """Return by what to multiply each row of an update, (b, m).

    The mean of a row is over its whole length, and the norm is that of the whole matrix, on whatever ranks they lie.
    Rows that are zero remain so.

    Args:
        squares: sums of the squares of this rank's part of each row, (b, m), in float32 or better.
        length: of the whole rows.
        chosen: 1 for the rows that are updated, (b, m), and 0 for the others, whose state stays; None for all.
        batch: with a state "row_moment".
        group: options.
    """
    layout = batch.layout
    v = batch.stacked("row_moment").squeeze(-1)  # (b, m)
    squares = yield from layout.grid.along(layout.cuts[1]).sum(squares)
    weight = batch.gated(1 - group["beta2"])
    news = (squares / length).to(v.dtype).sub_(v).mul_(weight)
    v.add_(news if chosen is None else news.mul_(chosen))
    gains = 1 / (v.to(squares.dtype).sqrt() + group["eps"])
    norms = torch.stack([squares.sum(-1), (squares.sqrt() * gains).square().sum(-1)], dim=-1)  # (b, 2)
    before, after = (yield from layout.grid.along(layout.cuts[0]).sum(norms)).unbind(-1)
    rescaled: Tensor = gains * torch.where(after > 0, (before / after).sqrt(), 0).unsqueeze(-1)
    return rescaled
