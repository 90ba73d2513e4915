"""Polar factors from decompositions: of the matrices themselves, or of their Gram matrices."""

import math

import torch
from torch import Tensor

from orthon.linalg.gram import symmetric_gram
from orthon.linalg.norms import divide_by_norm, frobenius_norm
from orthon.linalg.precision import full_precision, rounding_noise
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of


def by_svd(U: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the polar factors of U (b, m, n) by singular value decompositions, in float32 or float64."""
    size = result_of(frobenius_norm(U, ONE_RANK))
    W, S, Vt = torch.linalg.svd(divide_by_norm(U, size, torch.empty_like(U, dtype=dtype)), full_matrices=False)
    noise = rounding_noise(U.dtype).of_matrix
    with full_precision():
        factor: Tensor = (W * (noise < S)[:, None]) @ Vt
    # Rows and columns of zeros stay exactly zero. The decomposition leaves a little in them, and a rule may divide by
    # the norm of a row.
    return factor.mul_((U != 0).any(-1, keepdim=True)).mul_((U != 0).any(-2, keepdim=True))


def by_eigenvectors(U: Tensor, ranks: RowRanks) -> Computation[Tensor]:
    """Return this rank's rows of polar factors, in float64, by the eigenvectors of the Gram matrices of columns.

    Args:
        U: this rank's rows of the matrices, (b, m/ranks, n).
        ranks: the ranks that hold rows.
    """
    size = yield from frobenius_norm(U, ranks)
    X = divide_by_norm(U, size, torch.empty_like(U, dtype=torch.float64))
    gram = yield from symmetric_gram(X, ranks, of_rows=False)
    squares, V = torch.linalg.eigh(gram)
    # Singular values up to this are noise: rounding of the Gram matrix leaves as much.
    noise = max(rounding_noise(U.dtype).of_matrix, 16 * math.sqrt(torch.finfo(torch.float64).eps))
    weight = torch.where(squares > noise**2, squares.clamp(min=noise**2).rsqrt(), 0)
    factor: Tensor = X @ ((V * weight[:, None]) @ V.mT)
    return factor.mul_((gram.diagonal(dim1=-2, dim2=-1) > 0)[:, None])  # columns of zeros, as above
