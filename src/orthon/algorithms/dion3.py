"""Dion3, also called NorDion2: Dion2 with second moments of rows (arXiv 2608.11612)."""

from dataclasses import replace

import torch
from torch import Tensor

from orthon.algorithms import dion2
from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group
from orthon.algorithms.row_moments import ROW_OPTIONS, row_gains, row_moments
from orthon.algorithms.selected_rows import Selection
from orthon.algorithms.state import Entries
from orthon.linalg import factor_dtype
from orthon.sharding import Layout, Step


def dion3(batch: Batch, group: Group) -> Step[None]:
    """Make one step of Dion3: Dion2, whose O is divided by root mean squares v (b, m, 1) of the rows of X.

    v ← beta2·v + (1 − beta2)·mean_j O²        of the rows S, or of all where S are columns
    Ô ← O / (√v + eps)
    Ô ← Ô·‖O‖ / ‖Ô‖                            Frobenius norms
    """
    yield from dion2.dion2(batch, group, _normalized)


def _normalized(O: dion2.Matrices, S: Selection, batch: Batch, group: Group) -> Step[dion2.Matrices]:
    """Return O with each row of the weights divided by its root mean square over time.

    Args:
        O: for each matrix this rank's part of the selected rows; of the columns, where the batch is read transposed.
        S: which.
        batch: of the matrices.
        group: options.
    """
    dtype = factor_dtype(O[0].dtype)
    O = O.to(dtype) if isinstance(O, Tensor) else [part.to(dtype) for part in O]
    if batch.reads_transposed:
        squares = torch.stack([part.square().sum(0) for part in O])  # (b, m)
        gains = yield from row_gains(squares, S.count, None, batch, group)
        return O * gains.unsqueeze(-2) if isinstance(O, Tensor) else [o * g for o, g in zip(O, gains, strict=True)]
    squares = O[0].new_zeros(len(O), batch.layout.part_shape[0])
    chosen = torch.zeros_like(squares)
    if isinstance(O, Tensor) and isinstance(S.rows, Tensor):
        squares.scatter_(1, S.rows, O.square().sum(-1))
        chosen.scatter_(1, S.rows, 1)
    else:
        for part, rows, of_matrix, mask in zip(O, S.rows, squares, chosen, strict=True):
            of_matrix.index_copy_(0, rows, part.square().sum(-1))
            mask.index_fill_(0, rows, 1)
    gains = yield from row_gains(squares, batch.layout.shape[1], chosen, batch, group)
    if isinstance(O, Tensor) and isinstance(S.rows, Tensor):
        return O * gains.gather(1, S.rows).unsqueeze(-1)
    return [part * gain[rows].unsqueeze(-1) for part, rows, gain in zip(O, S.rows, gains, strict=True)]


def _entries(shape: tuple[int, ...], group: Group) -> Entries:
    return {**dion2.RULE.entries(shape, group), **row_moments()}


def _temporaries(layout: Layout, group: Group, dtype: torch.dtype) -> float:
    """Return the bytes of Dion2, and of three times the selected rows in float32."""
    m, n = layout.largest
    return dion2.temporaries(layout, group, dtype) + float(group["fraction"]) * 12 * m * n


RULE = replace(
    dion2.RULE,
    name="dion3",
    options={**dion2.RULE.options, **ROW_OPTIONS},
    entries=_entries,
    update=dion3,
    temporaries=_temporaries,
)
