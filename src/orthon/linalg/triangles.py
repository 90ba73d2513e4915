"""Triangular factors of Gram matrices, and columns divided by them."""

import torch
from torch import Tensor

from orthon.linalg.arithmetic import Arithmetic
from orthon.linalg.axis_norms import axis_norms
from orthon.linalg.precision import full_precision

# Triangles with so many columns are inverted at once.
_SMALL = 256

# How often a factorization that has broken down is tried again, and with how much larger a shift each time.
TRIES, _LARGER = 2, 16.0


def equilibrated_(gram: Tensor, inverse: Tensor) -> Tensor:
    """Return the Gram matrix of the columns times their inverse norms (b, 1, r), with unit rows for dead columns.

    It overwrites `gram`, of which it reads the upper triangle. Of the result the lower one is valid.
    """
    result = gram.mul_(inverse).mul_(inverse.mT).mT  # column-major, so that LAPACK can work in place
    torch.linalg.diagonal(result).fill_(1)
    return result


def cholesky_(gram: Tensor, shift: float | Tensor) -> Tensor:
    """Return the lower Cholesky factor of Gram matrices (b, r, r) with a unit diagonal, shifted; overwrites them.

    The shift is a number, or one for each matrix, (b, 1).
    """
    diagonal = torch.linalg.diagonal(gram)
    diagonal.copy_(1 + shift) if isinstance(shift, Tensor) else diagonal.fill_(1 + shift)
    info = torch.empty(gram.shape[:-2], dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(gram, out=(gram, info))
    return gram


def larger_where_broken(shift: float | Tensor, left_over: Tensor) -> Tensor:
    """Return shifts (b, 1) for another try, larger for matrices whose factorization has broken down.

    The diagonal of such a factor, `left_over` (b, r), has numbers that are not positive, or NaNs.
    """
    return torch.where((left_over > 0).all(-1, keepdim=True), 1.0, _LARGER) * shift


def is_sound(L: Tensor) -> Tensor:
    """Return which Cholesky factors (b, r, r) of nearly orthonormal columns have not broken down, (b,)."""
    sound: Tensor = axis_norms(L, dim=(-2, -1)).isfinite() & (torch.linalg.diagonal(L) > 0.5).all(-1)
    return sound


def is_nearly_identity(gram: Tensor) -> bool:
    """Return whether columns with these Gram matrices become orthonormal in one pass."""
    # In the Frobenius norm, by less than 0.1: the square of the norm less 2·trace, plus r.
    trace = torch.linalg.diagonal(gram).sum(-1)
    return bool((axis_norms(gram, dim=(-2, -1)).square() - 2 * trace + gram.shape[-1] < 1e-2).all())


def solved_(B: Tensor, U: Tensor) -> Tensor:
    """Return B U⁻¹ of B (b, m, r) and upper triangles U (b, r, r); overwrites B."""
    with full_precision():
        torch.linalg.solve_triangular(U, B, upper=True, left=False, out=B)
    return B


def inverted(L: Tensor) -> Tensor:
    """Return L⁻ᵀ. This takes r/m of the operations of solving a system with m rows."""
    I = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    with full_precision():
        W: Tensor = torch.linalg.solve_triangular(L.mT, I, upper=True)
    return W


def inverted_by_halves(L: Tensor) -> Tensor:
    """Return L⁻ᵀ with two thirds of the operations of `inverted`, mostly in products."""
    W = torch.zeros_like(L)

    def invert(start: int, stop: int) -> None:
        middle, whole = (start + stop) // 2, slice(start, stop)
        first, second = slice(start, middle), slice(middle, stop)
        if stop - start <= _SMALL:
            W[:, whole, whole] = inverted(L[:, whole, whole])
            return
        invert(start, middle)
        invert(middle, stop)
        corner = W[:, first, first] @ L[:, second, first].mT @ W[:, second, second]
        W[:, first, second] = corner.neg_()

    with full_precision():
        invert(0, L.shape[-1])
    return W


def times_(B: Tensor, W: Tensor, by: Arithmetic, *, corrects: bool) -> Tensor:
    """Return B W for an arithmetic that multiplies; overwrites B and W.

    Args:
        B: (b, m, r).
        W: inverse triangles, (b, r, r).
        by: the arithmetic.
        corrects: whether W is close to the identity, so that B + B (W − I) errs less.
    """
    if corrects and by.correct is not None:
        torch.linalg.diagonal(W).sub_(1)
        return B.add_(by.correct(B, W))
    assert by.times is not None
    return by.times(B, W)
