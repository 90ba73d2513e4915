"""A Cholesky factor without the columns that depend on others, where the host does not look at results."""

import torch
from torch import Tensor

from orthon.linalg.precision import full_precision

# A panel has this part of the columns, and at least and at most so many.
_PART, _LEAST, _MOST = 4, 64, 256


def cholesky_dropping_(gram: Tensor, live: Tensor, shift: float | Tensor, *, least: float) -> tuple[Tensor, Tensor]:
    """Return the lower Cholesky factor of a Gram matrix, with unit rows for columns that do not live.

    It goes by panels of columns. The diagonal block of a panel is factored with a shift, which tells how much of each
    column is left beside the columns before it. Columns of which too little is left are dropped, and the block is
    factored again without them and without the shift. All this takes the operations of one factorization, and few more
    for the blocks.

    So a dropped column does not count any more for the panels after it. For its own panel it does.

    Args:
        gram: (b, r, r), of which the lower triangle is read; overwritten. Its diagonal counts as 1.
        live: which columns live before, (b, r). The others have rows and columns of zeros beside the diagonal.
        shift: added to the diagonal so that any Gram matrix can be factored; a number, or one for each matrix, (b, 1).
        least: how much of a column should be left.

    Returns:
        the factor (b, r, r), and which columns live, (b, r).
    """
    r = gram.shape[-1]
    torch.linalg.diagonal(gram).fill_(1)
    alive = []
    width = min(_MOST, max(_LEAST, -(-r // _PART)))
    for start in range(0, r, width):
        stop = min(start + width, r)
        block, below = gram[:, start:stop, start:stop], gram[:, stop:, start:stop]
        shifted = block.clone()
        torch.linalg.diagonal(shifted).add_(shift)
        left_over = torch.linalg.diagonal(torch.linalg.cholesky_ex(shifted).L)
        alive.append(live[:, start:stop] & (left_over > least))
        kept = alive[-1].to(gram.dtype).unsqueeze(-1)
        gram[:, start:stop, :stop].mul_(kept)
        block.mul_(kept.mT)
        torch.linalg.diagonal(block).add_(1 - kept.squeeze(-1))
        block.copy_(torch.linalg.cholesky_ex(block).L)
        if stop < r:
            with full_precision():
                below.copy_(torch.linalg.solve_triangular(block.mT, below * kept.mT, upper=True, left=False))
                gram[:, stop:, stop:].baddbmm_(below, below.mT, alpha=-1)
    return gram.tril_(), torch.cat(alive, -1)
