"""Gram matrices of tall matrices whose rows are spread over ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from orthon.linalg.axis_norms import axis_norms
from orthon.linalg.kernels import symmetric_product
from orthon.linalg.precision import full_precision
from orthon.linalg.row_ranks import Computation, RowRanks


def plain_gram(B: Tensor) -> Tensor:
    """Return Bᵀ B (b, r, r) of B (b, m, r), in its own dtype."""
    with full_precision():
        return B.mT @ B


def gram_with_lengths(B: Tensor, gram_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return Bᵀ B (b, r, r) of B (b, m, r), with the diagonal computed apart, without rounding B.

    Rounding can be biased, for example if a GPU cuts bits off. In the squares on the diagonal this bias would add up.
    """
    gram = gram_of(B)
    gram.diagonal(dim1=-2, dim2=-1).copy_(axis_norms(B, dim=-2).square_())
    return gram


def symmetric_gram(X: Tensor, ranks: RowRanks, *, of_rows: bool) -> Computation[Tensor]:
    """Return the whole Gram matrices of X, summed over the ranks, in the dtype of X.

    Args:
        X: this rank's rows, (b, m/ranks, n).
        ranks: the ranks that hold rows.
        of_rows: whether to return X Xᵀ (b, m, m), which takes all rows on one rank; otherwise Xᵀ X (b, n, n).
    """
    if ranks.size == 1:
        with full_precision():
            return symmetric_product(X, X.mT) if of_rows else symmetric_product(X.mT, X)
    assert not of_rows
    packed = yield from ranks.sum(pack_upper(plain_gram(X)))  # only this triangle is communicated
    upper = unpack_upper(packed, X.shape[-1]).triu_()
    mirrored: Tensor = upper.add_(upper.triu(1).mT)
    return mirrored


def packed_size(r: int) -> int:
    """Return how many numbers `pack_upper` makes of an r × r matrix: r(r+1)/2, and up to r/2 more for odd r."""
    h = (r + 1) // 2
    return h * h + (r - h) + h * (r - h)


def pack_upper(A: Tensor) -> Tensor:
    """Return the upper triangle of A (b, r, r) as (b, packed_size(r)) numbers, made of rectangles.

    A is cut into four blocks at half of r. The upper triangles of the two diagonal blocks make one square: the first
    is its upper triangle, and the second, transposed and without its diagonal, is the part below.
    """
    h = (A.shape[-1] + 1) // 2
    first, second, corner = A[:, :h, :h], A[:, h:, h:], A[:, :h, h:]
    square = first.triu()
    k = second.shape[-1]
    square[:, :k, :k] += second.mT.tril(-1)
    return torch.cat([square.flatten(1), second.diagonal(dim1=-2, dim2=-1), corner.flatten(1)], dim=1)


def unpack_upper(packed: Tensor, r: int) -> Tensor:
    """Return A (b, r, r), of which `pack_upper` has made `packed`; what is below the diagonal is undefined."""
    b, h = len(packed), (r + 1) // 2
    k = r - h
    square, diagonal, corner = torch.split(packed, [h * h, k, h * k], dim=1)
    square = square.view(b, h, h)
    A = packed.new_empty(b, r, r)
    A[:, :h, :h] = square.triu()
    A[:, :h, h:] = corner.view(b, h, k)
    A[:, h:, h:] = square[:, :k, :k].tril(-1).mT
    A[:, h:, h:].diagonal(dim1=-2, dim2=-1).copy_(diagonal)
    return A
