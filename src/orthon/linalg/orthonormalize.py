"""Orthonormal columns for batches of tall matrices, from small sums over the ranks that hold their rows."""

import math

import torch
from torch import Tensor

from orthon.linalg.arithmetic import Arithmetic, arithmetic
from orthon.linalg.columns import Columns, host_decides, in_range_, inverse_row, noise_floor
from orthon.linalg.device import is_readable
from orthon.linalg.gram import gram_sum
from orthon.linalg.precision import Noise, factor_dtype, full_precision, rounding_noise
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of

# A diagonal shift of this many epsilon times r keeps the Cholesky factorization of an r × r Gram matrix
# with unit diagonal from breaking down, whatever the rank of the matrix.
SHIFT = 2.0


def orthonormalize(
    B: Tensor, *, left: Columns | None = None, precision: str = "float32", noise: Noise | None = None
) -> Columns:
    """Return the orthonormal factor `P` of the QR decomposition of each matrix of a batch.

    A column that depends on the columns before it, up to rounding, becomes exactly zero instead of normalized
    noise: `Pᵀ P` is the identity on the live columns. The diagonal of the triangular factor is positive, so
    that `P` is unique.

    There are up to three passes of Cholesky QR (Fukaya et al., "Shifted Cholesky QR", SIAM J. Sci. Comput. 42, 2020),
    each on the column-equilibrated Gram matrix. The first pass lowers the condition number. The second pass finds the
    columns which are noise; it is left out where the host sees that the columns are almost orthonormal already. The
    third pass makes the rest orthonormal.

    In float32 and float64, `Pᵀ P` is exact to a few epsilon, for condition numbers to 1e10 and exact rank deficiency.
    In "tf32" it is exact to 1e-3 and in "bf16x3" to 3e-5, and more columns count as noise; `Arithmetic` says when these
    bounds hold, and how much smaller the errors usually are.

    Args:
        B: (b, m, r), of any scale and floating dtype. Its storage may be overwritten.
        left: the orthonormal columns P, if B is Mᵀ P. Their noise is in B as well.
        precision: of products of float32 matrices with m rows; one of `PRECISIONS`.
        noise: of B. The default is that of a product computed in its dtype.
    """
    return result_of(orthonormalize_on_shards(B, ONE_RANK, left=left, precision=precision, noise=noise))


def orthonormalize_on_shards(
    B: Tensor,
    ranks: RowRanks,
    *,
    left: Columns | None = None,
    precision: str | Arithmetic = "float32",
    noise: Noise | None = None,
) -> Computation[Columns]:
    """Return what `orthonormalize` does, of matrices whose rows are spread over ranks.

    The result does not depend on how they are spread. The ranks sum only r × r and r numbers for each matrix.

    Args:
        B: this rank's rows of the matrices, (b, m/ranks, r).
        ranks: the ranks that together hold all m rows.
        left: as for `orthonormalize`.
        precision: as for `orthonormalize`, or the arithmetic itself.
        noise: as for `orthonormalize`.
    """
    noise = noise or rounding_noise(B.dtype)
    B = B.to(factor_dtype(B.dtype))
    by = precision if isinstance(precision, Arithmetic) else arithmetic(precision, B.dtype)
    shift, looks = SHIFT * torch.finfo(B.dtype).eps * B.shape[-1] + by.shift, host_decides(B, ranks, by)

    # First pass. A column that is noise beside the whole matrix is dropped at once.
    gram, scale = yield from in_range_(B, ranks, lambda B: gram_sum(B, ranks, by.rough_gram), looks=looks)  # (b, r, r)
    norm = torch.linalg.diagonal(gram).sqrt()  # (b, r)
    size = norm * scale
    floor = noise_floor(norm, scale, noise.of_matrix, left, by)
    live = norm > floor
    relative_noise = torch.clamp(floor / norm, min=max(noise.of_column, by.noise.of_column))  # of a unit column
    inverse = inverse_row(norm, live)  # (b, 1, r)
    L = _cholesky_(_equilibrated_(gram, inverse), shift)
    residual = torch.linalg.diagonal(L).clone()  # what is left of a unit column beside the columns before it
    B = _solve_(B, inverse, L, by)
    del gram, L  # each as large as B at full rank

    gram = yield from gram_sum(B, ranks, by.rough_gram)
    norm = torch.linalg.diagonal(gram).sqrt()
    inverse = inverse_row(norm, live)
    if looks and _is_nearly_identity(gram) and bool((residual > 2 * relative_noise).all()):
        residual *= norm
        L = _cholesky_(_equilibrated_(gram, inverse), 0.0)
        return Columns(_solve_(B, inverse, L, by), live, residual * size)

    # Second pass. Its factor tells how much of each column is left. A column of which nothing is left is dropped, and
    # the matrix is factored again without it.
    L = _cholesky_(_equilibrated_(gram.clone(), inverse), shift)
    left_over = torch.linalg.diagonal(L)
    residual *= norm * left_over
    before, live = live, live & (residual > relative_noise) & (left_over > 4 * math.sqrt(shift))
    if not _is_known_equal(before, live):
        inverse = inverse_row(norm, live)
        L = _cholesky_(_equilibrated_(gram, inverse), shift)
    B = _solve_(B, inverse, L, by)
    del gram, L

    # Third pass, without a shift. Columns that are still far from orthogonal are noise that had been amplified.
    gram = yield from gram_sum(B, ranks, by.gram, lengths=by.times is not None)
    norm = torch.linalg.diagonal(gram).sqrt()
    left_over = torch.linalg.diagonal(_cholesky_(_equilibrated_(gram.clone(), inverse_row(norm, live)), shift))
    live = live & (left_over > 0.5)
    inverse = inverse_row(norm, live)
    L = _cholesky_(_equilibrated_(gram, inverse), 0.0)
    # A matrix for which even this fails (Kahan's, with hundreds of columns) is left out: its columns do not live.
    sound = torch.linalg.vector_norm(L, dim=(-2, -1)).isfinite() & (torch.linalg.diagonal(L) > 0.5).all(-1)
    live = live & sound[:, None]
    torch.where(sound[:, None, None], L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device), out=L)
    B = _correct_(B, inverse_row(norm, live), L, by)
    return Columns(B, live, residual * size)


def _is_nearly_identity(gram: Tensor) -> bool:
    """Return whether columns with these Gram matrices become orthonormal in one pass."""
    # In the Frobenius norm, by less than 0.1: the square of the norm less 2·trace, plus r.
    trace = torch.linalg.diagonal(gram).sum(-1)
    return bool((torch.linalg.vector_norm(gram, dim=(-2, -1)).square() - 2 * trace + gram.shape[-1] < 1e-2).all())


def _is_known_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two masks are equal. False on accelerators, for which the host would have to wait."""
    return is_readable(a) and torch.equal(a, b)


def _equilibrated_(gram: Tensor, inverse: Tensor) -> Tensor:
    """Return the Gram matrix of the columns times their inverse norms (b, 1, r), with unit rows for dead columns.

    It overwrites `gram`, of which it reads the upper triangle. Of the result the lower one is valid.
    """
    result = gram.mul_(inverse).mul_(inverse.mT).mT  # column-major, so that LAPACK can work in place
    torch.linalg.diagonal(result).fill_(1)
    return result


def _cholesky_(gram: Tensor, shift: float) -> Tensor:
    """Return the lower Cholesky factor of a Gram matrix with a unit diagonal, shifted; overwrites it."""
    torch.linalg.diagonal(gram).fill_(1 + shift)
    info = torch.empty(gram.shape[:-2], dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(gram, out=(gram, info))
    return gram


def _solve_(B: Tensor, inverse: Tensor, L: Tensor, by: Arithmetic) -> Tensor:
    """Return (B · inverse) L⁻ᵀ, with the inverse norms (b, 1, r) of the columns, zero for dead ones; overwrites B."""
    B.mul_(inverse)
    if by.times is not None:
        return by.times(B, _inverted(L))
    with full_precision():
        torch.linalg.solve_triangular(L.mT, B, upper=True, left=False, out=B)
    return B


def _correct_(B: Tensor, inverse: Tensor, L: Tensor, by: Arithmetic) -> Tensor:
    """Return the same as `_solve_`, for L close to the identity: B + B (L⁻ᵀ − I), so that products err less."""
    if by.correct is None:
        return _solve_(B, inverse, L, by)
    B.mul_(inverse)
    W = _inverted(L)
    torch.linalg.diagonal(W).sub_(1)
    return B.add_(by.correct(B, W))


def _inverted(L: Tensor) -> Tensor:
    """Return L⁻ᵀ. This takes r/m of the operations of solving a system with m rows."""
    I = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    with full_precision():
        W: Tensor = torch.linalg.solve_triangular(L.mT, I, upper=True)
    return W
