"""Orthonormal and unit columns for batches of tall matrices, from small sums over the ranks alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from orthon.linalg.arithmetic import Arithmetic, arithmetic
from orthon.linalg.device import is_readable
from orthon.linalg.gram import gram_sum
from orthon.linalg.precision import Noise, factor_dtype, full_precision, rounding_noise
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of

# A diagonal shift of this many epsilon times r keeps the Cholesky factorization of an r × r Gram matrix
# with unit diagonal from breaking down, whatever the rank of the matrix.
SHIFT = 2.0


class Columns(NamedTuple):
    """Columns that are orthonormal, or of unit length, where they live and zero where they do not.

    Attributes:
        vectors: this rank's rows of them, (b, m/ranks, r), in float32, or in float64 for float64.
        live: which columns live, (b, r).
        size: how long they were before, beside what depends on the columns before them, (b, r).
    """

    vectors: Tensor
    live: Tensor
    size: Tensor


def orthonormalize(
    B: Tensor, *, left: Columns | None = None, precision: str = "float32", noise: Noise | None = None
) -> Columns:
    """Return the orthonormal factors of matrices B (b, m, r) in one process; see `orthonormalize_on_shards`."""
    return result_of(orthonormalize_on_shards(B, ONE_RANK, left=left, precision=precision, noise=noise))


def unit_columns(
    R: Tensor, *, left: Columns | None = None, precision: str = "float32", noise: Noise | None = None
) -> Columns:
    """Return the unit columns of matrices R (b, n, r) in one process; see `unit_columns_on_shards`."""
    return result_of(unit_columns_on_shards(R, ONE_RANK, left=left, precision=precision, noise=noise))


def orthonormalize_on_shards(
    B: Tensor, ranks: RowRanks, *, left: Columns | None = None, precision: str = "float32", noise: Noise | None = None
) -> Computation[Columns]:
    """Return the orthonormal factor `P` of the QR decomposition of each matrix of a batch.

    A column that depends on the columns before it, up to rounding, becomes exactly zero instead of normalized
    noise: `Pᵀ P` is the identity on the live columns. The diagonal of the triangular factor is positive, so
    that `P` is unique and does not depend on how the rows are spread. Only sums over rows of r × r and of r
    numbers are communicated.

    Up to three passes of Cholesky QR (Fukaya et al., "Shifted Cholesky QR", SIAM J. Sci. Comput. 42, 2020), each on
    the column-equilibrated Gram matrix. The first makes the columns well enough conditioned to find, in the second,
    those which are noise; the third makes the rest orthonormal to a few epsilon. The second is left out where the host
    sees that the first has brought the columns close. In float32 all of this holds for condition numbers to 1e10 and
    exact rank deficiency. In "tf32" the result is orthonormal to 1e-3, in "bf16x3" to 1e-5, and more columns count as
    noise.

    Args:
        B: this rank's rows of the matrices, (b, m/ranks, r), of any scale and floating dtype. Its storage may
            be overwritten.
        ranks: the ranks that together hold all m rows.
        left: if `B` is Mᵀ P, the orthonormal columns P. They carry the noise of what they come from.
        precision: of products of float32 matrices with m rows; one of `PRECISIONS`.
        noise: in B; if not given, that of a product computed in its dtype.
    """
    noise = noise or rounding_noise(B.dtype)
    B = B.to(factor_dtype(B.dtype))
    by = arithmetic(precision, B.dtype)
    shift = SHIFT * torch.finfo(B.dtype).eps * B.shape[-1] + by.shift

    # First pass. A column that is noise beside the whole matrix is dropped at once.
    gram, scale = yield from _in_range_(B, ranks, by, lambda B: gram_sum(B, ranks, by.rough_gram))  # (b, r, r), (b, r)
    norm = _diagonal(gram).sqrt()  # (b, r)
    size = norm * scale
    floor = _floor(norm, scale, noise.of_matrix, left, by)
    live = norm > floor
    relative_noise = torch.clamp(floor / norm, min=max(noise.of_column, by.noise.of_column))  # of a unit column
    L = _cholesky_(_equilibrated_(gram, norm, live), shift)
    residual = _diagonal(L).clone()  # what is left of a unit column beside the columns before it
    B = _solve_(B, norm, live, L, by)
    del gram, L  # each as large as B at full rank

    gram = yield from gram_sum(B, ranks, by.rough_gram)
    norm = _diagonal(gram).sqrt()
    if _is_at_hand(B, ranks, by) and _is_nearly_identity(gram) and bool((residual > 2 * relative_noise).all()):
        residual *= norm
        L = _cholesky_(_equilibrated_(gram, norm, live), 0.0)
        return Columns(_solve_(B, norm, live, L, by), live, residual * size)

    # Second pass. Its factor tells the true residual; a column without one is dropped and factored out.
    L = _cholesky_(_equilibrated_(gram.clone(), norm, live), shift)
    left_over = _diagonal(L)
    residual *= norm * left_over
    before, live = live, live & (residual > relative_noise) & (left_over > 4 * math.sqrt(shift))
    if not _is_known_equal(before, live):
        L = _cholesky_(_equilibrated_(gram, norm, live), shift)
    B = _solve_(B, norm, live, L, by)
    del gram, L

    # Third pass, without a shift. Columns that are still far from orthogonal are noise that had been amplified.
    gram = yield from gram_sum(B, ranks, by.gram, lengths=by.times is not None)
    norm = _diagonal(gram).sqrt()
    live = live & (_diagonal(_cholesky_(_equilibrated_(gram.clone(), norm, live), shift)) > 0.5)
    L = _cholesky_(_equilibrated_(gram, norm, live), 0.0)
    # A matrix that defeats even this (Kahan's, with hundreds of columns) is left out, not taken as it is.
    sound = torch.linalg.vector_norm(L, dim=(-2, -1)).isfinite() & (_diagonal(L) > 0.5).all(-1)
    live = live & sound[:, None]
    torch.where(sound[:, None, None], L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device), out=L)
    B = _correct_(B, norm, live, L, by)
    return Columns(B, live, residual * size)


def unit_columns_on_shards(
    R: Tensor, ranks: RowRanks, *, left: Columns | None = None, precision: str = "float32", noise: Noise | None = None
) -> Computation[Columns]:
    """Return each column of a batch of matrices divided by its norm.

    A column whose norm is rounding noise beside the Frobenius norm of its matrix becomes zero.

    Args:
        R: this rank's rows of the matrices, (b, n/ranks, r), of any scale and floating dtype. Its storage may
            be overwritten.
        ranks: the ranks that together hold all n rows.
        left: if `R` is Mᵀ P, the orthonormal columns P. They carry the noise of what they come from.
        precision: with which P was made orthonormal.
        noise: in R; if not given, that of a product computed in its dtype.
    """
    noise = noise or rounding_noise(R.dtype)
    R = R.to(factor_dtype(R.dtype))
    by = arithmetic(precision, R.dtype)
    dead = None if left is None else ~left.live
    squares, scale = yield from _in_range_(R, ranks, by, lambda R: ranks.sum(_squares(R)), dead)  # (b, r), (b, r)
    norm = squares.sqrt()
    live = norm > _floor(norm, scale, noise.of_matrix, left, by)
    return Columns(R.mul_(_inverse(norm, live)), live, norm * scale)


def overwrite_where_(Q: Tensor, live: Tensor, columns: Tensor) -> None:
    """Overwrite the columns of Q (b, n, r) that live, as `live` (b, 1, r) says, with those of another matrix."""
    if is_readable(live) and bool(live.all()):  # as almost always, and twice as fast
        Q.copy_(columns)
    else:
        torch.where(live, columns.to(Q.dtype), Q, out=Q)


def _squares(R: Tensor) -> Tensor:
    """Return the squares of the norms of columns, (b, r). Only of what lies together is the norm quick."""
    return torch.linalg.vector_norm(R, dim=-2).square_() if R.stride(-2) == 1 else R.square().sum(-2)


def _floor(norm: Tensor, scale: Tensor, noise: float, left: Columns | None, by: Arithmetic) -> Tensor:
    """Return the norm up to which each column is noise, (b, r).

    With R = Mᵀ P and P from B = M Q: B errs by epsilon times the norm of M, which is far more than its own when Q
    misses most of M. The columns of P err by that over their size in B; those which should be orthogonal to M
    are so up to that error, and bring it into R. So do columns of P that are not quite orthogonal to each other.

    Args:
        norm: of the scaled columns, (b, r).
        scale: of the columns, (b, r).
        noise: relative to the Frobenius norm.
        left: P, if there is one.
        by: what made P orthonormal.
    """
    top = scale.amax(-1, keepdim=True)  # (b, 1)
    relative = scale / torch.where(top > 0, top, 1)
    noise = noise if left is None else max(noise, by.noise.of_matrix)
    floor = noise * torch.linalg.vector_norm(norm * relative, dim=-1, keepdim=True)
    if left is not None:
        missed = torch.where(left.live, norm * (scale / left.size), 0).amax(-1, keepdim=True)
        floor = floor * missed.clamp(min=1)
    result: Tensor = floor / relative
    return result


def _is_at_hand(B: Tensor, ranks: RowRanks, by: Arithmetic) -> bool:
    """Return whether the host can look at what it computes, and leave out what is not needed.

    Not with several ranks, which have to agree, nor where other arithmetic stands in for an accelerator's.
    """
    return ranks.size == 1 and is_readable(B) and by.times is None


def _in_range_(
    B: Tensor,
    ranks: RowRanks,
    by: Arithmetic,
    squares_of: Callable[[Tensor], Computation[Tensor]],
    dead: Tensor | None = None,
) -> Computation[tuple[Tensor, Tensor]]:
    """Divide the columns so that none of their squares overflows or vanishes, unless the host sees that none does.

    Args:
        B: this rank's rows of the columns, (b, m/ranks, r), divided in place.
        ranks: that hold rows.
        by: what multiplies.
        squares_of: returns their squares (b, r), or Gram matrices (b, r, r).
        dead: which columns are zero, (b, r), if any are known to be.

    Returns:
        the squares or Gram matrices of what is in B then, and the divisors (b, r).
    """
    if _is_at_hand(B, ranks, by):
        result = yield from squares_of(B)
        squares = result if result.ndim == 2 else _diagonal(result)
        fits = (squares > 1e-30) & (squares < 1e30)
        if bool((fits if dead is None else fits | dead).all()):
            return result, torch.ones_like(squares)
        del result, squares, fits  # the first as large as B at full rank
    scale = yield from ranks.sum(B.abs().sum(-2))
    B.div_(torch.where(scale > 0, scale, 1).unsqueeze(-2))
    return (yield from squares_of(B)), scale


def _is_nearly_identity(gram: Tensor) -> bool:
    """Return whether columns with these Gram matrices become orthonormal in one pass."""
    # In the Frobenius norm, by less than 0.1: the square of the norm less 2·trace, plus r.
    trace = _diagonal(gram).sum(-1)
    return bool((torch.linalg.vector_norm(gram, dim=(-2, -1)).square() - 2 * trace + gram.shape[-1] < 1e-2).all())


def _is_known_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two masks are equal; False on accelerators, which would have to be waited for."""
    return is_readable(a) and torch.equal(a, b)


def _diagonal(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1)


def _inverse(norm: Tensor, live: Tensor) -> Tensor:
    """Return 1/norm as a row (b, 1, r), and zero for columns that do not live."""
    return torch.where(live, 1 / norm, 0).unsqueeze(-2)


def _equilibrated_(gram: Tensor, norm: Tensor, live: Tensor) -> Tensor:
    """Return the Gram matrix of the columns divided by their norms, with unit rows for dead ones; overwrites it.

    Only the lower triangle of the result counts, and of `gram` the upper one.
    """
    weight = _inverse(norm, live)
    result = gram.mul_(weight).mul_(weight.mT).mT  # column-major, so that LAPACK can work in place
    _diagonal(result).fill_(1)
    return result


def _cholesky_(gram: Tensor, shift: float) -> Tensor:
    """Return the lower Cholesky factor of a Gram matrix with a unit diagonal, shifted; overwrites it."""
    _diagonal(gram).fill_(1 + shift)
    info = torch.empty(gram.shape[:-2], dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(gram, out=(gram, info))
    return gram


def _solve_(B: Tensor, norm: Tensor, live: Tensor, L: Tensor, by: Arithmetic) -> Tensor:
    """Return (B / norm) L⁻ᵀ, with zeros for dead columns; overwrites B."""
    B.mul_(_inverse(norm, live))
    if by.times is not None:
        return by.times(B, _inverted(L))
    with full_precision():
        torch.linalg.solve_triangular(L.mT, B, upper=True, left=False, out=B)
    return B


def _correct_(B: Tensor, norm: Tensor, live: Tensor, L: Tensor, by: Arithmetic) -> Tensor:
    """Do the same where L is close to the identity; errors of products are as much smaller as it is close."""
    if by.correct is None:
        return _solve_(B, norm, live, L, by)
    B.mul_(_inverse(norm, live))
    W = _inverted(L)
    _diagonal(W).sub_(1)
    return B.add_(by.correct(B, W))


def _inverted(L: Tensor) -> Tensor:
    """Return L⁻ᵀ. Beside a system with m rows, this takes r/m of the operations."""
    I = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    with full_precision():
        W: Tensor = torch.linalg.solve_triangular(L.mT, I, upper=True)
    return W
