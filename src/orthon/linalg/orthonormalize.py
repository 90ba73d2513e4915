"""Orthonormal and unit columns for batches of tall matrices, from small sums over the ranks alone."""

import math

import torch
from torch import Tensor

from orthon.linalg.precision import factor_dtype, full_precision, rounding_noise
from orthon.sharding import Ranks, Step

# A diagonal shift of this many epsilon times r keeps the Cholesky factorization of an r × r Gram matrix
# with unit diagonal from breaking down, whatever the rank of the matrix.
SHIFT = 2.0


def orthonormalize(B: Tensor, ranks: Ranks, *, computed_in: torch.dtype | None = None) -> Step[tuple[Tensor, Tensor]]:
    """Return the orthonormal factor `P` of the QR decomposition of each matrix of a batch, and which columns live.

    A column that depends on the columns before it, up to rounding, becomes exactly zero instead of normalized
    noise: `Pᵀ P` is the identity on the live columns. The diagonal of the triangular factor is positive, so
    that `P` is unique and does not depend on how the rows are spread. Only sums over rows of r × r and of r
    numbers are communicated.

    Three passes of Cholesky QR (Fukaya et al., "Shifted Cholesky QR", SIAM J. Sci. Comput. 42, 2020), each on
    the column-equilibrated Gram matrix. The first makes the columns well enough conditioned to find, in the
    second, those which are noise; the third makes the rest orthonormal to a few epsilon. In float32 all of
    this holds for condition numbers to 1e10 and exact rank deficiency.

    Args:
        B: this rank's rows of the matrices, (b, m/rows, r), any floating dtype, any scale.
        ranks: the ranks that together hold all m rows.
        computed_in: the dtype in which `B` was computed, if not its own; sets what counts as noise.

    Returns:
        `P` (b, m/rows, r) in float32, or in float64 for float64, and the mask of its live columns (b, r).
        A matrix that is zero has no live column.
    """
    noise = rounding_noise(computed_in or B.dtype)
    B, scale = yield from _scaled(B, ranks)
    shift = SHIFT * torch.finfo(B.dtype).eps * B.shape[-1]

    # First pass. A column that is noise beside the whole matrix is dropped at once.
    gram = yield from ranks.sum(_gram(B))  # (b, r, r)
    norm = _diagonal_root(gram)  # (b, r)
    size = norm * scale
    floor = noise.of_matrix * torch.linalg.vector_norm(size, dim=-1, keepdim=True)
    live = size > floor
    relative_noise = torch.clamp(floor / size, min=noise.of_column)  # of a unit column
    L = _cholesky(gram, norm, live, shift)
    residual = _diagonal(L)  # what is left of a unit column beside the columns before it
    B = _solve(B, norm, live, L)

    # Second pass. Its factor tells the true residual; a column without one is dropped and factored out.
    gram = yield from ranks.sum(_gram(B))
    norm = _diagonal_root(gram)
    L = _cholesky(gram, norm, live, shift)
    residual = residual * norm * _diagonal(L)
    live = live & (residual > relative_noise) & (_diagonal(L) > 4 * math.sqrt(shift))
    L = _cholesky(gram, norm, live, shift)
    B = _solve(B, norm, live, L)

    # Third pass, without a shift. Columns that are still far from orthogonal are noise that had been amplified.
    gram = yield from ranks.sum(_gram(B))
    norm = _diagonal_root(gram)
    live = live & (_diagonal(_cholesky(gram, norm, live, shift)) > 0.5)
    L = _cholesky(gram, norm, live, 0.0)
    # A matrix that defeats even this (Kahan's, with hundreds of columns) is left out, not taken as it is.
    sound = torch.isfinite(L).all(-1).all(-1) & (_diagonal(L) > 0.5).all(-1)
    live = live & sound[:, None]
    P = _solve(B, norm, live, torch.where(sound[:, None, None], L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)))
    return P, live


def unit_columns(R: Tensor, ranks: Ranks, *, computed_in: torch.dtype | None = None) -> Step[tuple[Tensor, Tensor]]:
    """Return each column of a batch of matrices divided by its norm, and which columns live.

    A column whose norm is rounding noise beside the Frobenius norm of its matrix becomes zero.

    Args:
        R: this rank's rows of the matrices, (b, n/ranks, r), any floating dtype, any scale.
        ranks: the ranks that together hold all n rows.
        computed_in: the dtype in which `R` was computed, if not its own; sets what counts as noise.

    Returns:
        The unit columns (b, n/ranks, r) in float32, or in float64 for float64, and the mask (b, r).
    """
    noise = rounding_noise(computed_in or R.dtype)
    R, scale = yield from _scaled(R, ranks)
    norm = (yield from ranks.sum(R.square().sum(-2))).sqrt()  # (b, r)
    size = norm * scale
    live = size > noise.of_matrix * torch.linalg.vector_norm(size, dim=-1, keepdim=True)
    return R.mul_(_inverse(norm, live)), live


def _scaled(B: Tensor, ranks: Ranks) -> Step[tuple[Tensor, Tensor]]:
    """Return B with columns of moderate size, so that no square overflows or vanishes, and their scale (b, r)."""
    B = B.to(factor_dtype(B.dtype))
    if B.shape[-2] == 0:
        largest = B.new_zeros(B.shape[0], B.shape[-1])
    else:
        largest = torch.linalg.vector_norm(B, ord=math.inf, dim=-2)
    scale = yield from ranks.sum(largest)  # between the largest entry and that times the number of ranks
    B = B / torch.where(scale > 0, scale, 1).unsqueeze(-2)
    top = scale.amax(-1, keepdim=True)
    return B, scale / torch.where(top > 0, top, 1)


def _gram(B: Tensor) -> Tensor:
    with full_precision():
        return (B.mT @ B).contiguous()


def _diagonal(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1)


def _diagonal_root(gram: Tensor) -> Tensor:
    return _diagonal(gram).sqrt()


def _inverse(norm: Tensor, live: Tensor) -> Tensor:
    """Return 1/norm as a row (b, 1, r), and zero for columns that do not live."""
    return torch.where(live, 1 / norm, 0).unsqueeze(-2)


def _cholesky(gram: Tensor, norm: Tensor, live: Tensor, shift: float) -> Tensor:
    """Return the lower Cholesky factor of the equilibrated Gram matrix, with unit rows for dead columns."""
    weight = _inverse(norm, live)
    equilibrated = gram * weight * weight.mT
    _diagonal(equilibrated).fill_(1 + shift)
    return torch.linalg.cholesky_ex(equilibrated).L


def _solve(B: Tensor, norm: Tensor, live: Tensor, L: Tensor) -> Tensor:
    """Return (B / norm) L⁻ᵀ, with zeros for dead columns."""
    with full_precision():
        return torch.linalg.solve_triangular(L.mT, B * _inverse(norm, live), upper=True, left=False)
