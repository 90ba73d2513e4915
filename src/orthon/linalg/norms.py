"""Frobenius norms of matrices of any scale, and their inverses."""

import torch
from torch import Tensor

from orthon.linalg.device import is_readable
from orthon.linalg.precision import factor_dtype
from orthon.linalg.row_ranks import Computation, RowRanks


def frobenius_norm(U: Tensor, ranks: RowRanks) -> Computation[Tensor]:
    """Return the Frobenius norms (b,) of whole matrices, without overflow.

    Args:
        U: this rank's rows of the matrices, (b, m/ranks, n).
        ranks: the ranks that hold rows.

    Returns:
        (b,), in float32, or in float64 where that is needed.
    """
    wide = factor_dtype(U.dtype)
    size: Tensor = torch.linalg.vector_norm(U, dim=(-2, -1)).to(wide)  # a dtype given to it would be slow
    # A sum in float64 is slow on CPUs. On GPUs it is slow to find out whether it is needed.
    if not is_readable(size) or not bool(((size > 1e-15) & (size < 1e15)).all()):
        size = torch.linalg.vector_norm(U, dim=(-2, -1), dtype=torch.float64)
    if ranks.size > 1:
        squares: Tensor = yield from ranks.sum(size.double().square())
        size = squares.sqrt()
    return size


def inverse_norm(size: Tensor) -> Tensor:
    """Return 1/size as (b, 1, 1), and zero for norms that are zero or too small for float32 to invert."""
    return torch.where(size < 4 * torch.finfo(torch.float32).tiny, 0, 1 / size)[:, None, None]
