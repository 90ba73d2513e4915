"""Frobenius norms of matrices of any scale, and their inverses."""

import torch
from torch import Tensor

from orthon.linalg.axis_norms import axis_norms
from orthon.linalg.device import device_type, is_readable
from orthon.linalg.in_cache import in_cache
from orthon.linalg.precision import factor_dtype
from orthon.linalg.row_ranks import Computation, RowRanks


def frobenius_norm(U: Tensor, ranks: RowRanks) -> Computation[Tensor]:
    """Return the Frobenius norms (b,) of whole matrices, without overflow.

    Args:
        U: this rank's rows of the matrices, (b, m/ranks, n).
        ranks: the ranks that hold rows.

    Returns:
        (b,), in float32, or in float64 where that is needed.
    """
    wide = factor_dtype(U.dtype)
    size: Tensor = axis_norms(U, dim=(-2, -1)).to(wide)  # a dtype given to it would be slow
    # A sum in float64 is slow on CPUs. On GPUs it is slow to find out whether it is needed.
    if not is_readable(size):
        size = _double_norm(U)
    elif not bool(((size > 1e-15) & (size < 1e15)).all()):
        size = _double_norm(U)
        if U.dtype == torch.bfloat16:  # as coarse as `size` is on a CPU: matrices of any scale are divided alike
            size = size.to(U.dtype).to(wide)
    if ranks.size > 1:
        size = yield from norm_over_ranks(size.double(), U.dtype, ranks)
    return size


def norm_over_ranks(norm: Tensor, dtype: torch.dtype, ranks: RowRanks) -> Computation[Tensor]:
    """Return the norms of what lies on several ranks, from the norms of each rank's part of it, all in float64.

    The squares of float32 numbers neither overflow nor vanish in float64. Those of float64 numbers may. So there are
    three sums of them, of large norms made smaller, of others, and of small ones made larger (J. L. Blue, "A portable
    Fortran program to find the Euclidean norm of a vector", ACM TOMS 4, 1978). They travel together.

    Args:
        norm: of this rank's parts, of any shape.
        dtype: of the numbers whose norms these are.
        ranks: the ranks.
    """
    if dtype != torch.float64:
        squares: Tensor = yield from ranks.sum(norm.square())
        return squares.sqrt()
    large, small = norm > 2.0**500, norm < 2.0**-500
    factor = torch.where(large, 2.0**-600, torch.where(small, 2.0**600, torch.ones_like(norm)))
    kinds = torch.stack([large, ~(large | small), small])
    sums = yield from ranks.sum(torch.where(kinds, (norm * factor).square(), 0))  # (3, ...)
    found = sums.sqrt()
    whole: Tensor = torch.hypot(torch.hypot(found[0] * 2.0**600, found[1]), found[2] * 2.0**-600)
    return whole


def squares_of_rows(A: Tensor, unit: Tensor) -> Tensor:
    """Return the squares of the norms of rows, each divided by the square of a unit.

    What is far above the unit may be infinite, and what is far below it zero, in squares of float32 on a CPU.

    Args:
        A: (b, n, m), in any floating dtype, with any strides.
        unit: powers of two, (b, 1, 1).

    Returns:
        (b, n, 1), in float32, or float64 on other devices and for float64.
    """
    inverse = (1 / unit).to(factor_dtype(A.dtype))
    if device_type(A.device) != "cpu" and A.dtype != torch.float64:  # torch copies A to float64 inside
        norm: Tensor = torch.linalg.vector_norm(A, dim=-1, keepdim=True, dtype=torch.float64)
        return norm.mul_(inverse).square_()
    b, n, m = A.shape
    result = A.new_zeros(b, n, 1, dtype=inverse.dtype)
    if not A.numel():  # of an owner of nothing, or of a rank without rows
        return result
    if A.stride(-1) == 1:
        for part, by, into in in_cache(A, inverse.expand(b, n, 1), result):
            into.copy_((part * by).square_().sum(-1, keepdim=True))
    else:
        for part, by, into in in_cache(A.mT, inverse.expand(b, m, 1), result.mT.expand(b, m, n)):
            into[:, :1].add_((part * by).square_().sum(-2, keepdim=True))
    return result


def inverse_norm(size: Tensor) -> Tensor:
    """Return 1/size as (b, 1, 1), and zero for norms that are zero."""
    return torch.where(size > 0, 1 / size, torch.where(size.isnan(), size, 0))[:, None, None]


def divide_by_norm(U: Tensor, size: Tensor, out: Tensor) -> Tensor:
    """Write each matrix divided by its norm into `out`, and return that. Zero matrices stay zero.

    Numbers at an end of the range of their dtype are brought to its middle first, by a power of two. Their norms have
    inverses that the dtype of the result cannot hold, and a 16-bit one cannot hold the numbers.

    Args:
        U: (b, m, n), in any floating dtype.
        size: their norms, (b,).
        out: (b, m, n). It may be U.
    """
    if is_readable(size) and bool(((size == 0) | ((size > 1e-30) & (size < 1e30))).all()):
        return out.copy_(U).mul_(inverse_norm(size).to(out.dtype))
    ends = 100 if U.dtype != torch.float64 or out.dtype != torch.float64 else 900
    most = 126 if U.dtype != torch.float64 else 1022
    exponent = torch.frexp(size.double()).exponent
    exponent = torch.where(exponent.abs() > ends, exponent.clamp(-most, most), 0)
    power = powers_of_two(-exponent)
    torch.mul(U, power[:, None, None].to(U.dtype), out=out)
    return out.mul_(inverse_norm(torch.where(power == 1, size, size.double() * power)).to(out.dtype))


def to_unit_scale(U: Tensor, size: Tensor, out: Tensor) -> Tensor:
    """Write each matrix times a power of two, so that its norm is in [1/2, 1), into `out`, and return that.

    This rounds no number that the dtype of the result can hold. So matrices that differ by a power of two become the
    same matrix. Of the smallest subnormal numbers the norm is smaller.

    Args:
        U: (b, m, n), in any floating dtype.
        size: their norms, (b,).
        out: (b, m, n). It may be U.
    """
    most = 126 if U.dtype != torch.float64 else 1022
    power = powers_of_two(-torch.frexp(size).exponent.clamp(-most, most))
    return torch.mul(U, power[:, None, None].to(U.dtype), out=out)


def powers_of_two(exponents: Tensor) -> Tensor:
    """Return 2 to the power of integers, exactly, in float64; `torch.ldexp` may find the power in float32."""
    powers: Tensor = torch.pow(2.0, exponents.double())
    return powers


def _double_norm(U: Tensor) -> Tensor:
    """Return the Frobenius norms (b,) in float64. Squares of float64 numbers may leave its range."""
    if U.dtype != torch.float64 or not U.numel():
        found: Tensor = axis_norms(U, dim=(-2, -1), dtype=torch.float64)
        return found
    top = torch.frexp(U.abs().amax((-2, -1), keepdim=True)).exponent.clamp(-1022, 1022)
    size: Tensor = axis_norms(U * powers_of_two(-top), dim=(-2, -1))
    return size * powers_of_two(top[:, 0, 0])
