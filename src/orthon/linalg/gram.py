"""Gram matrices of tall matrices whose rows are spread over ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from orthon.linalg.arithmetic import plain_gram
from orthon.linalg.row_ranks import Computation, RowRanks


def gram_sum(
    B: Tensor, ranks: RowRanks, gram_of: Callable[[Tensor], Tensor] = plain_gram, *, lengths: bool = False
) -> Computation[Tensor]:
    """Return the upper triangle of Bᵀ B (b, r, r), summed over the ranks that hold rows of B (b, m/ranks, r).

    Only half of it is communicated; what is below the diagonal is undefined.

    Args:
        B: this rank's rows.
        ranks: that hold rows.
        gram_of: computes the product Bᵀ B.
        lengths: whether to compute the diagonal apart, exactly. Rounding of entries can be biased, also by what a
            GPU's products cut off, and errs most there, where it is squared.
    """
    gram = gram_of(B)
    if lengths:
        gram.diagonal(dim1=-2, dim2=-1).copy_(torch.linalg.vector_norm(B, dim=-2).square_())
    if ranks.size == 1:
        return gram.contiguous()
    r = gram.shape[-1]
    packed = yield from ranks.sum(_pack(gram))
    return _unpack(packed, r)


def _pack(A: Tensor) -> Tensor:
    """Return the upper triangle of A (b, r, r) as rectangles.

    With A cut into four blocks at half of r, the two triangles on the diagonal make one square: one as it is, and
    one, without its own diagonal, transposed.
    """
    h = (A.shape[-1] + 1) // 2
    first, second, corner = A[:, :h, :h], A[:, h:, h:], A[:, :h, h:]
    square = first.triu()
    k = second.shape[-1]
    square[:, :k, :k] += second.mT.tril(-1)
    return torch.cat([square.flatten(1), second.diagonal(dim1=-2, dim2=-1), corner.flatten(1)], dim=1)


def _unpack(packed: Tensor, r: int) -> Tensor:
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
