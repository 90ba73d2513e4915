"""Cholesky factors without the columns that turn out to be noise, where the host does not look at results."""

from collections.abc import Callable

import torch
from torch import Tensor

from orthon.linalg.precision import full_precision

# A panel has this part of the columns, and at least and at most so many. Each takes two small factorizations.
_PART, _LEAST, _MOST = 4, 64, 256


def cholesky_dropping_(
    gram: Tensor, lives: Callable[[Tensor, slice], Tensor], *, shift: float, final_shift: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower Cholesky factor of a Gram matrix, with unit rows for columns that are dropped on the way.

    It goes by panels of columns. The diagonal block of a panel is factored with `shift`, which tells how much of each
    column is left. Columns of which too little is left are dropped, and the block is factored again without them, with
    `final_shift`. All this takes the operations of one factorization, and few more for the blocks.

    So a dropped column does not count any more for the panels after it. For its own panel it does: a column of the same
    panel has what is left beside all columns before it, dropped ones as well.

    Args:
        gram: (b, r, r), of which the lower triangle is read; overwritten. Its diagonal counts as 1.
        lives: returns which columns of a panel live, (b, k), from what is left of them, (b, k), and which columns they
            are.
        shift: added to the diagonal so that any Gram matrix can be factored.
        final_shift: added to the diagonal in the factor that is returned; `shift` or less.

    Returns:
        the factor (b, r, r), what is left of each column, (b, r), and which columns live, (b, r).
    """
    r = gram.shape[-1]
    width = min(_MOST, max(_LEAST, -(-r // _PART)))
    torch.linalg.diagonal(gram).fill_(1 + final_shift)
    left_over, live = [], []
    for start in range(0, r, width):
        stop = min(start + width, r)
        panel, rest = slice(start, stop), slice(stop, r)
        block = gram[:, panel, panel]
        trial = block.clone()
        torch.linalg.diagonal(trial).add_(shift - final_shift)
        left = torch.linalg.diagonal(torch.linalg.cholesky_ex(trial).L)
        alive = lives(left, panel)
        left_over.append(left)
        live.append(alive)
        kept = alive.to(gram.dtype)
        block.mul_(kept.unsqueeze(-1)).mul_(kept.unsqueeze(-2))
        torch.linalg.diagonal(block).add_((1 + final_shift) * (1 - kept))
        block.copy_(torch.linalg.cholesky_ex(block).L)
        gram[:, panel, :start].mul_(kept.unsqueeze(-1))
        if stop < r:
            below = gram[:, rest, panel].mul_(kept.unsqueeze(-2))
            with full_precision():
                below.copy_(torch.linalg.solve_triangular(block.mT, below, upper=True, left=False))
                gram[:, rest, rest].baddbmm_(below, below.mT, alpha=-1)
    return gram.tril_(), torch.cat(left_over, -1), torch.cat(live, -1)
