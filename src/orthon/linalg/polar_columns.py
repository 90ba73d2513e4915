"""Polar factors of batches of tall matrices as columns, which live or do not, from small sums over ranks."""

import math

import torch
from torch import Tensor

from orthon.linalg.arithmetic import Arithmetic, arithmetic
from orthon.linalg.columns import Columns, check_columns
from orthon.linalg.orthonormalize import orthonormalize_on_shards
from orthon.linalg.polar_iteration import iterate
from orthon.linalg.polynomials import POLAR_EXPRESS, Polynomial
from orthon.linalg.precision import Noise, factor_dtype, full_precision, rounding_noise
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of

# The table of polynomials is for singular values from 1e-3 on. Its second one, taken once more, makes those from a
# fourth of that on large enough, and so on. It keeps all others in the interval for which the third one is made.
_LEAST = 1e-3


def polar_columns(
    R: Tensor, *, left: Columns | None = None, precision: str = "float32", noise: Noise | None = None
) -> Columns:
    """Return the polar factor R (RᵀR)^(−1/2) of each matrix of a batch, over the columns that live.

    A column that depends on the columns before it, up to rounding, becomes zero, as in `orthonormalize`. The others
    become orthonormal: of all matrices with orthonormal columns there, the result is the closest to R. It does not
    depend on the order of columns that all live.

    It is found as Q₀ H, where R = Q₀ T is the QR decomposition, and H the polar factor of the r × r matrix T, by an
    iteration of products alone. So nothing is squared: the Gram matrix of R itself, rounded to float32, does not know
    singular values below 3e-4 of the largest, and its inverse root errs by epsilon times the square of the condition
    number.

    Limits. In float32 the singular values are 1 to 1e-5, and the factor is exact to 8 epsilon times the condition
    number. That holds for singular values of R down to an eighth of what counts as noise beside the matrix
    (`Noise.of_matrix`): 1e-6 of the largest in float32, 2e-15 in float64. Smaller ones, which only columns that differ
    in size leave, get a part of the length 1. In "tf32" and "bf16x3" the limits are those of
    `orthonormalize`, and what is added to them is as much again.

    Args:
        R: (b, n, r), of any scale and floating dtype. It stays as it is.
        left: as for `orthonormalize`.
        precision: as for `orthonormalize`.
        noise: as for `orthonormalize`.

    Raises:
        TypeError, ValueError: for arguments of other types or shapes, or another precision.
    """
    check_columns("R", R, left=left, precision=precision, noise=noise)
    return result_of(polar_columns_on_shards(R, ONE_RANK, left=left, precision=precision, noise=noise))


def polar_columns_on_shards(
    R: Tensor,
    ranks: RowRanks,
    *,
    left: Columns | None = None,
    precision: str | Arithmetic = "float32",
    noise: Noise | None = None,
    turn: int = 0,
) -> Computation[Columns]:
    """Return what `polar_columns` does, of matrices whose rows are spread over ranks.

    Beside what `orthonormalize_on_shards` sends, the ranks add up the r × r matrices T. Each finds the polar factors of
    some of them, and these are gathered.

    Args:
        R: this rank's rows of the matrices, (b, n/ranks, r). It stays as it is.
        ranks: the ranks that together hold all n rows.
        left: as for `orthonormalize`.
        precision: as for `orthonormalize`, or the arithmetic itself.
        noise: as for `orthonormalize`.
        turn: as for `orthonormalize_on_shards`.
    """
    noise = noise or rounding_noise(R.dtype)
    b, _, r = R.shape
    wide = factor_dtype(R.dtype)
    by = precision if isinstance(precision, Arithmetic) else arithmetic(precision, wide)
    whole = R.to(wide, copy=True)
    found: Columns = yield from orthonormalize_on_shards(whole, ranks, left=left, precision=by, noise=noise, turn=turn)
    del whole
    with full_precision():
        T = found.vectors.mT @ R.to(wide)  # (b, r, r)
    T.mul_(found.live.unsqueeze(-2))
    summed = yield from ranks.reduce_matrices(T.flatten(1), _added, turn=turn)
    del T
    H = polar_of_squares_(summed.view(-1, r, r), noise)
    del summed
    gathered = yield from ranks.gather_matrices(H.flatten(1), b, turn=turn)
    H = gathered.view(b, r, r)
    with full_precision():
        vectors = found.vectors @ H if by.times is None else by.times(found.vectors, H)
    return Columns(vectors, found.live, found.size)


def polar_columns_flops(r: int) -> float:
    """Return about how many floating-point operations `polar_columns` takes for one r × r matrix, in float32."""
    steps = square_polynomials(rounding_noise(torch.float32))
    return 6.0 * r**3 * len(steps) + 2.0 * r**3


def polar_of_squares_(T: Tensor, noise: Noise) -> Tensor:
    """Return the polar factors of r × r matrices T (b, r, r); overwrites T. Rows and columns of zeros stay zero."""
    if T.numel() > 0:
        result_of(iterate(T, T, ONE_RANK, [[step] for step in square_polynomials(noise)], tighten=True))
    return T


def square_polynomials(noise: Noise) -> list[Polynomial]:
    """Return the polynomials that make all singular values 1 down to an eighth of what is noise beside the matrix."""
    first, second, *others = POLAR_EXPRESS[:8]
    least = min(_LEAST, noise.of_matrix / 8)
    again = math.ceil(math.log(_LEAST / least) / math.log(second[0]))
    return [first, *[second] * (1 + again), *others]


def _added(parts: Tensor) -> Tensor:
    return parts.sum(0)
