"""Orthonormal columns for batches of tall matrices, from small sums over the ranks that hold their rows."""

import torch
from torch import Tensor

from orthon.linalg.arithmetic import Arithmetic, arithmetic
from orthon.linalg.columns import Columns, check_columns, host_decides, in_range_, inverse_row, noise_floor
from orthon.linalg.device import is_readable
from orthon.linalg.gram import gram_with_lengths
from orthon.linalg.orthonormalize_dealt import orthonormalize_dealt
from orthon.linalg.precision import Noise, factor_dtype, rounding_noise
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of
from orthon.linalg.triangles import (
    TRIES,
    cholesky_,
    equilibrated_,
    inverted,
    is_nearly_identity,
    is_sound,
    larger_where_broken,
    solved_,
    times_,
)

# A diagonal shift of this many epsilon times r keeps the Cholesky factorization of an r × r Gram matrix with unit
# diagonal from breaking down, whatever the rank of the matrix. But sums of equal numbers round all to one side. Where
# the host sees that the factorization broke down, it is made again with a larger shift.
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

    Raises:
        TypeError, ValueError: for arguments of other types or shapes, or another precision.
    """
    check_columns("B", B, left=left, precision=precision, noise=noise)
    return result_of(orthonormalize_on_shards(B, ONE_RANK, left=left, precision=precision, noise=noise))


def orthonormalize_on_shards(
    B: Tensor,
    ranks: RowRanks,
    *,
    left: Columns | None = None,
    precision: str | Arithmetic = "float32",
    noise: Noise | None = None,
    turn: int = 0,
) -> Computation[Columns]:
    """Return what `orthonormalize` does, of matrices whose rows are spread over ranks.

    The result does not depend on how they are spread. The ranks send only r × r and r numbers for each matrix. Each
    factors some of the Gram matrices, see `orthonormalize_dealt`.

    Args:
        B: this rank's rows of the matrices, (b, m/ranks, r).
        ranks: the ranks that together hold all m rows.
        left: as for `orthonormalize`.
        precision: as for `orthonormalize`, or the arithmetic itself.
        noise: as for `orthonormalize`.
        turn: the place of the rank with which the dealing of the Gram matrices starts, see `RowRanks`. It must be the
            same on all ranks.
    """
    noise = noise or rounding_noise(B.dtype)
    B = B.to(factor_dtype(B.dtype))
    by = precision if isinstance(precision, Arithmetic) else arithmetic(precision, B.dtype)
    shift = SHIFT * torch.finfo(B.dtype).eps * B.shape[-1] + by.shift
    if ranks.size == 1:
        return _orthonormalize(B, shift, left, noise, by)
    return (yield from orthonormalize_dealt(B, ranks, shift, left=left, noise=noise, by=by, turn=turn))


def _orthonormalize(B: Tensor, shift: float | Tensor, left: Columns | None, noise: Noise, by: Arithmetic) -> Columns:
    looks = host_decides(B, by)

    # First pass. A column that is noise beside the whole matrix is dropped at once.
    gram, scale = in_range_(B, by.rough_gram, looks=looks)  # (b, r, r)
    norm = torch.linalg.diagonal(gram).sqrt()  # (b, r)
    size = norm * scale
    floor = noise_floor(norm, scale, noise.of_matrix, left, by)
    live = norm > floor
    relative_noise = torch.clamp(floor / norm, min=max(noise.of_column, by.noise.of_column))  # of a unit column
    inverse = inverse_row(norm, live)  # (b, 1, r)
    L = cholesky_(equilibrated_(gram, inverse), shift)
    residual = torch.linalg.diagonal(L).clone()  # what is left of a unit column beside the columns before it
    for _ in range(TRIES if looks else 0):
        if bool((residual > 0).all()):
            break
        shift = larger_where_broken(shift, residual)
        L = cholesky_(equilibrated_(by.rough_gram(B).contiguous(), inverse), shift)
        residual = torch.where(torch.linalg.diagonal(L) > 0, torch.linalg.diagonal(L), 0)
    B = _solve_(B, inverse, L, by)
    del gram, L  # each as large as B at full rank

    gram = by.rough_gram(B).contiguous()
    norm = torch.linalg.diagonal(gram).sqrt()
    inverse = inverse_row(norm, live)
    if looks and is_nearly_identity(gram) and bool((residual > 2 * relative_noise).all()):
        residual *= norm
        L = cholesky_(equilibrated_(gram, inverse), 0.0)
        return Columns(_solve_(B, inverse, L, by), live, residual * size)

    # Second pass. Its factor tells how much of each column is left. A column of which nothing is left is dropped, and
    # the matrix is factored again without it.
    L = cholesky_(equilibrated_(gram.clone(), inverse), shift)
    left_over = torch.linalg.diagonal(L)
    if looks:  # where a factorization has broken down, its diagonal may have any numbers
        left_over = torch.where(left_over > 0, left_over, 0)
    residual *= norm * left_over
    before, live = live, live & (residual > relative_noise) & (left_over > 4 * shift**0.5)
    del left_over  # it may be a view of L
    if not _is_known_equal(before, live):
        del L
        inverse = inverse_row(norm, live)
        L = cholesky_(equilibrated_(gram, inverse), shift)
    B = _solve_(B, inverse, L, by)
    del gram, L

    # Third pass, without a shift. Columns that are still far from orthogonal are noise that had been amplified.
    gram = (by.gram(B) if by.times is None else gram_with_lengths(B, by.gram)).contiguous()
    norm = torch.linalg.diagonal(gram).sqrt()
    left_over = torch.linalg.diagonal(cholesky_(equilibrated_(gram.clone(), inverse_row(norm, live)), shift))
    live = live & (left_over > 0.5)
    inverse = inverse_row(norm, live)
    L = cholesky_(equilibrated_(gram, inverse), 0.0)
    # A matrix for which even this fails (Kahan's, with hundreds of columns) is left out: its columns do not live.
    sound = is_sound(L)
    live = live & sound[:, None]
    torch.where(sound[:, None, None], L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device), out=L)
    B = _solve_(B, inverse_row(norm, live), L, by, corrects=True)
    return Columns(B, live, residual * size)


def _is_known_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two masks are equal. False on accelerators, for which the host would have to wait."""
    return is_readable(a) and torch.equal(a, b)


def _solve_(B: Tensor, inverse: Tensor, L: Tensor, by: Arithmetic, *, corrects: bool = False) -> Tensor:
    """Return (B · inverse) L⁻ᵀ, with the inverse norms (b, 1, r) of the columns, zero for dead ones; overwrites B.

    `corrects` says that L is close to the identity, so that products can err less.
    """
    B.mul_(inverse)
    return solved_(B, L.mT) if by.times is None else times_(B, inverted(L), by, corrects=corrects)
