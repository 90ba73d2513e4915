"""Columns of unit length, and which columns are only rounding noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthon.linalg.arithmetic import PRECISIONS, Arithmetic, arithmetic
from orthon.linalg.axis_norms import axis_norms
from orthon.linalg.device import is_readable
from orthon.linalg.norms import norm_over_ranks
from orthon.linalg.precision import FLOAT_DTYPES, Noise, factor_dtype, not_real, rounding_noise
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of


class Columns(NamedTuple):
    """Columns that are orthonormal or of unit length if they live, and zero if they do not.

    A column does not live if it is only rounding noise.

    Attributes:
        vectors: this rank's rows of them, (b, m/ranks, r), in float32, or in float64 for float64.
        live: which columns live, (b, r).
        size: how long the columns were before, without the part that depends on the columns before them, (b, r).
    """

    vectors: Tensor
    live: Tensor
    size: Tensor


def unit_columns(
    R: Tensor, *, left: Columns | None = None, precision: str = "float32", noise: Noise | None = None
) -> Columns:
    """Return each column of a batch of matrices divided by its norm.

    A column becomes zero if its norm is rounding noise beside the Frobenius norm of its matrix.

    Args:
        R: (b, n, r), of any scale and floating dtype. Its storage may be overwritten.
        left: the orthonormal columns P, if R is Mᵀ P. Their noise is in R as well.
        precision: of the products that made P orthonormal.
        noise: of R. The default is that of a product computed in its dtype.

    Raises:
        TypeError, ValueError: for arguments of other types or shapes, or another precision.
    """
    check_columns("R", R, left=left, precision=precision, noise=noise)
    return result_of(unit_columns_on_shards(R, ONE_RANK, left=left, precision=precision, noise=noise))


def unit_columns_on_shards(
    R: Tensor,
    ranks: RowRanks,
    *,
    left: Columns | None = None,
    precision: str | Arithmetic = "float32",
    noise: Noise | None = None,
) -> Computation[Columns]:
    """Return what `unit_columns` does, of matrices whose rows are spread over ranks.

    Args:
        R: this rank's rows of the matrices, (b, n/ranks, r).
        ranks: the ranks that together hold all n rows. They sum r numbers for each matrix.
        left: as for `unit_columns`.
        precision: as for `unit_columns`, or the arithmetic itself.
        noise: as for `unit_columns`.
    """
    noise = noise or rounding_noise(R.dtype)
    R = R.to(factor_dtype(R.dtype))
    by = precision if isinstance(precision, Arithmetic) else arithmetic(precision, R.dtype)
    looks, dead = host_decides(R, by), None if left is None else ~left.live
    if ranks.size == 1:
        squares, scale = in_range_(R, _squares, looks=looks, dead=dead)  # (b, r), (b, r)
        norm = squares.sqrt()
        live = norm > noise_floor(norm, scale, noise.of_matrix, left, by)
        return Columns(R.mul_(inverse_row(norm, live)), live, norm * scale)
    squares, scale = in_range_(R, _squares, looks=looks, dead=dead, of_two=True)  # of this rank's rows
    norm = yield from norm_over_ranks(squares.sqrt() * scale.double(), R.dtype, ranks)
    unit = (norm > 0).double()
    live = unit > noise_floor(unit, norm, noise.of_matrix, left, by)
    factor = torch.where(live, scale / norm, 0).to(R.dtype)  # R is already divided by `scale`
    return Columns(R.mul_(factor.unsqueeze(-2)), live, norm.to(R.dtype))


def check_columns(name: str, columns: Any, *, left: object, precision: object, noise: object) -> None:
    """Raise a TypeError or ValueError for columns (b, m, r), or what goes with them, that cannot be computed with."""
    if not isinstance(columns, Tensor) or columns.dtype not in FLOAT_DTYPES:
        raise not_real(name, columns)
    if columns.ndim != 3:
        raise ValueError(f"{name} should be a batch of matrices (b, m, r), but has the shape {tuple(columns.shape)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision should be one of {', '.join(PRECISIONS)}, but is {precision!r}")
    if not isinstance(noise, Noise | None):
        raise TypeError(f"noise should be a Noise or None, but is {noise!r}")
    if not isinstance(left, Columns | None):
        raise TypeError(f"left should be Columns or None, but is a {type(left).__name__}")
    b, _, r = columns.shape
    if left is not None and left.live.shape != (b, r):
        raise ValueError(f"left should have as many columns as {name}, {(b, r)}, but has {tuple(left.live.shape)}")


def overwrite_where_(Q: Tensor, live: Tensor, columns: Tensor) -> None:
    """Overwrite the live columns of Q (b, n, r) with those of `columns` (b, n, r); `live` is (b, 1, r)."""
    if is_readable(live) and bool(live.all()):  # as almost always, and twice as fast
        Q.copy_(columns)
    else:
        torch.where(live, columns.to(Q.dtype), Q, out=Q)


def inverse_row(norm: Tensor, live: Tensor) -> Tensor:
    """Return 1/norm as a row (b, 1, r), with zeros for columns that do not live."""
    return torch.where(live, 1 / norm, 0).unsqueeze(-2)


def noise_floor(norm: Tensor, scale: Tensor, noise: float, left: Columns | None, by: Arithmetic) -> Tensor:
    """Return the norm up to which each column is noise, (b, r).

    Let R = Mᵀ P, where P comes from B = M Q. The error of B is epsilon times the norm of M. If Q misses most of M, that
    is far more than epsilon times the norm of B. A column of P has this error divided by its size in B, and R gets it
    from P: also where a column of P should be orthogonal to M, so that R should be zero. Columns of P that are not
    quite orthogonal to each other add to it.

    Args:
        norm: of the scaled columns, (b, r).
        scale: what the columns were divided by, (b, r).
        noise: relative to the Frobenius norm.
        left: P, if there is one.
        by: the arithmetic that made P orthonormal.
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


def host_decides(B: Tensor, by: Arithmetic) -> bool:
    """Return whether the host may look at results, to leave out what is not needed.

    It may not if the arithmetic is that of an accelerator, so that a CPU does what the accelerator would do.
    """
    return is_readable(B) and by.times is None


def in_range_(
    B: Tensor,
    squares_of: Callable[[Tensor], Tensor],
    *,
    looks: bool,
    dead: Tensor | None = None,
    of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """Divide columns so that their squares neither overflow nor vanish, unless the host sees that none does.

    Args:
        B: the columns, (b, m, r), divided in place. Of columns over several ranks, the rows of this one.
        squares_of: returns the squares (b, r) of columns, or their Gram matrices (b, r, r).
        looks: whether the host looks at them, see `host_decides`.
        dead: which columns are known to be zero, (b, r).
        of_two: whether to divide by powers of two, which round nothing.

    Returns:
        the squares or Gram matrices of the divided columns, and what they were divided by, (b, r). That is zero for
        columns of zeros.
    """
    if looks:
        result = squares_of(B).contiguous()
        squares = result if result.ndim == 2 else torch.linalg.diagonal(result)
        fits = (squares > 1e-30) & (squares < 1e30)
        if bool((fits if dead is None else fits | dead).all()):
            return result, torch.ones_like(squares)
        del result, squares, fits  # the first as large as B at full rank
    # A sum that overflows is that of numbers near the end of the range, which its largest power of two brings down.
    scale = B.abs().sum(-2).clamp_(max=torch.finfo(B.dtype).max / 2)
    if of_two:
        scale = torch.where(scale > 0, torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent - 1), 0)
    B.div_(torch.where(scale > 0, scale, 1).unsqueeze(-2))
    return squares_of(B).contiguous(), scale


def _squares(R: Tensor) -> Tensor:
    """Return the squares of the norms of columns, (b, r). A vector norm is fast only if the columns lie together."""
    return axis_norms(R, dim=-2).square_() if R.stride(-2) == 1 else R.square().sum(-2)
