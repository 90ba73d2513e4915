"""Polar factors of batches of matrices, and what they cost."""

import math
from collections.abc import Sequence
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from orthon.linalg.device import device_type
from orthon.linalg.polar_exact import by_eigenvectors, by_svd
from orthon.linalg.polar_iteration import iterate
from orthon.linalg.polynomials import Polynomial, segments
from orthon.linalg.precision import FLOAT_DTYPES, factor_dtype, not_real
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of

METHODS = ("polar_express", "newton_schulz", "svd")
ROUTES = ("auto", "direct", "gram")

# From this ratio of the long to the short side, polynomials of the small Gram matrix are faster than polynomials of
# the matrix itself. By their operations they break even at 1.5. Measured with 5 steps on 2 cores with AMX, in bfloat16
# (float32), the Gram route takes 1.11 (1.03) of the time of the other at 1.5 with short sides of 768, 1.02 (0.93) at
# 2, 0.91 (0.85) at 3, and 0.85 (0.78) at 4. It is not used where it gains little, because it rounds twice as much.
GRAM_ASPECT = 2.5

# A CPU computes the polar factor of a matrix of up to this many numbers in float32 in half of the time that it takes in
# bfloat16, even if it multiplies bfloat16 in hardware.
SMALL_ON_CPU = 2048

# How many bytes of temporaries stay in the cache of CPU cores. Two matrices of 768×3072 in bfloat16 at a time, one for
# each of 2 cores, take 15 % less time than twelve; one at a time takes twice as long, as the cores then share each
# product.
CACHE_BYTES = 32 << 20

# If temporaries would take more bytes than this, the matrices of a batch are taken a few at a time.
TEMPORARY_BYTES = 64 << 20


def polar(
    U: Tensor,
    *,
    method: str = "polar_express",
    steps: int = 5,
    route: str = "auto",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Return the polar factor W Vᵀ of each matrix U = W S Vᵀ, over the directions that U has.

    A zero matrix gives zero. Directions that U does not have give zero up to rounding. An iteration multiplies the
    rounding errors in them by the slopes of all polynomials, by up to 1000 in 5 steps. In float32 the result stays
    below 1e-4. In bfloat16 it can reach 1, but rows and columns that are zero or equal stay zero or equal.

    The Polar Express brings the singular values of matrices with condition numbers to 100 into [0.87, 1.13] in 5 steps,
    and into [0.99, 1.01] in 6. A condition number of 1000 takes 7. The "gram" route in bfloat16 reaches 1.2 after 5
    steps. For short sides below 128 it applies one polynomial at a time there, because rounding would be too large.

    Args:
        U: (..., m, n), of any scale and floating dtype.
        method: "polar_express" (Amsel et al., arXiv 2505.16932), with the best polynomial for each step;
            "newton_schulz", with Keller Jordan's polynomial; or "svd", exactly, in float32 or float64.
        steps: how many polynomials an iteration applies.
        route: "direct" computes polynomials of the matrix, "gram" of its small Gram matrix; "auto" takes the faster.
        dtype: of the computation and the result, by default `polar_dtype`'s for U. The range of float16 is too short.
        overwrite: whether the result may be written into U. It is, if U is contiguous and has the result's dtype.

    Returns:
        (..., m, n), in `dtype`; for "svd" in float32 if `dtype` is bfloat16.

    Raises:
        TypeError: if U is not a tensor of real floats, or `steps` not an integer.
        ValueError: if U has less than 2 dims, there is no such method or route, `steps` is less than 1, or `dtype` is
            not one of bfloat16, float32 and float64.
    """
    _check(U, method, steps, route, dtype)
    m, n = U.shape[-2:]
    dtype = dtype or polar_dtype(U.dtype, U.device, U.shape[-2:])
    batch = U.reshape(math.prod(U.shape[:-2]), m, n)
    made_in = factor_dtype(dtype) if method == "svd" else dtype
    overwrite = overwrite and batch.dtype == made_in and batch.is_contiguous()
    result = batch if overwrite else torch.empty(batch.shape, dtype=made_in, device=U.device)
    if result.numel() > 0:
        steps_of = polar_segments(m, n, method=method, steps=steps, dtype=dtype, route=route)
        on_cpu = device_type(U.device) == "cpu"
        per_chunk = _per_chunk(m * n, min(m, n), result.dtype, threads=torch.get_num_threads() if on_cpu else None)
        for part, out in zip(torch.split(batch, per_chunk), torch.split(result, per_chunk), strict=True):
            if method == "svd":
                out.copy_(by_svd(part, result.dtype))
            else:
                into = part if overwrite else out
                result_of(iterate(part, into, ONE_RANK, steps_of, tighten=method == "polar_express"))
    return result.view(U.shape)


def polar_on_shards(
    U: Tensor,
    ranks: RowRanks,
    *,
    method: str = "polar_express",
    steps: int = 5,
    dtype: torch.dtype | None = None,
    most: int | None = None,
) -> Computation[Tensor]:
    """Return this rank's rows of the polar factors of matrices whose rows are spread over ranks.

    The ranks communicate only sums of n × n Gram matrices, one for every two steps. Each rank computes the polynomials
    of the sums for itself. "svd" takes one sum and its eigenvectors, in float64; the error is epsilon times the square
    of the condition number.

    Args:
        U: this rank's rows of the matrices, (b, m/ranks, n), as for `polar`.
        ranks: the ranks that together hold all m rows.
        method: as for `polar`.
        steps: as for `polar`.
        dtype: as for `polar`. It must be the same on all ranks; the default may differ between their processors.
        most: the largest b of all ranks that communicate at the same time, if they have different numbers of matrices.
            The computation pauses as often as it would for so many matrices.

    Returns:
        (b, m/ranks, n), in the dtype of `polar`.

    Raises:
        TypeError, ValueError: as for `polar`.
    """
    _check(U, method, steps, "gram", dtype)
    b, _, n = U.shape
    dtype = dtype or polar_dtype(U.dtype, U.device, (n, n))
    result = torch.empty(U.shape, dtype=factor_dtype(dtype) if method == "svd" else dtype, device=U.device)
    steps_of = segments(method, steps, dtype, "gram", n)
    per_chunk = _per_chunk(n * n, n, result.dtype)  # the same on all ranks, however many rows each has
    for start in range(0, b if most is None else most, per_chunk):
        part, out = U[start : start + per_chunk], result[start : start + per_chunk]
        if method == "svd":
            out.copy_((yield from by_eigenvectors(part, ranks)))
        else:
            yield from iterate(part, out, ranks, steps_of, tighten=method == "polar_express")
    return result


def polar_dtype(storage: torch.dtype, device: torch.device, shape: Sequence[int]) -> torch.dtype:
    """Return the dtype in which the polar factor of a matrix is computed fastest, and well enough for a training step.

    That is bfloat16 on GPUs and on CPUs that multiply matrices of it in hardware. It is float32 on other CPUs and for
    the smallest matrices, and float64 for float64.

    Args:
        storage: dtype of the matrix.
        device: of the matrix.
        shape: of the matrix.
    """
    if storage == torch.float64:
        return torch.float64
    if device.type == "cpu" and math.prod(shape) <= SMALL_ON_CPU:
        return torch.float32
    return torch.bfloat16 if device.type != "cpu" or _cpu_multiplies_bfloat16() else torch.float32


def polar_segments(
    m: int, n: int, *, method: str, steps: int, dtype: torch.dtype, route: str = "auto"
) -> list[list[Polynomial]]:
    """Return the polynomials for the polar factor of an m × n matrix, in lists of those that are composed."""
    return segments(method, steps, dtype, _route(m, n, steps, route), min(m, n))


def polar_flops(m: int, n: int, *, method: str = "polar_express", steps: int = 5, route: str = "auto") -> float:
    """Return about how many floating-point operations the polar factor of one m × n matrix takes."""
    short, long = min(m, n), max(m, n)
    if method == "svd":  # Golub and Van Loan, "Matrix Computations": R-SVD, and the product of the factors
        return 6.0 * long * short**2 + 20.0 * short**3 + 2.0 * short**2 * long
    steps_of = polar_segments(m, n, method=method, steps=steps, dtype=torch.float32, route=route)
    return _flops(long, short, method, steps_of)


def shards_cost(m: int, n: int, *, method: str = "polar_express", steps: int = 5) -> tuple[int, float]:
    """Return about what `polar_on_shards` costs a rank that has m rows of one matrix.

    Returns:
        how many sums of n × n numbers, and how many floating-point operations.
    """
    if method == "svd":
        return 1, 4.0 * m * n**2 + 25.0 * n**3
    steps_of = segments(method, steps, torch.float32, "gram", n)
    return len(steps_of), _flops(m, n, method, steps_of)


def _flops(m: int, n: int, method: str, steps_of: list[list[Polynomial]]) -> float:
    flops = 2.0 * n**3 if method == "polar_express" else 0.0  # the norm of the squared Gram matrix
    for segment in steps_of:
        products = 1 + 4 * (len(segment) - 1)  # of small matrices
        flops += 4.0 * n**2 * m + 2.0 * n**3 * products
    return flops


@cache
def _cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for products of bfloat16: AMX tiles, or AVX512-BF16.

    With either, products were four to five times as fast as in float32 (an Intel Xeon with AMX, an AMD EPYC without).
    """
    if capabilities := getattr(torch.cpu, "get_capabilities", None):  # not in all releases of torch
        found = capabilities()
        return bool(found.get("amx_bf16", False) or found.get("avx512_bf16", False))
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))


def _check(U: Any, method: str, steps: Any, route: str, dtype: torch.dtype | None) -> None:
    if not isinstance(U, Tensor) or U.dtype not in FLOAT_DTYPES:
        raise not_real("U", U)
    if U.ndim < 2:
        raise ValueError(f"U should be a matrix or a batch of them (..., m, n), but has the shape {tuple(U.shape)}")
    if method not in METHODS:
        raise ValueError(f"method should be one of {', '.join(METHODS)}, but is {method!r}")
    if route not in ROUTES:
        raise ValueError(f"route should be one of {', '.join(ROUTES)}, but is {route!r}")
    if type(steps) is bool or not isinstance(steps, Integral):
        raise TypeError(f"steps should be an integer, but is {steps!r}")
    if steps < 1:
        raise ValueError(f"steps should be at least 1, but is {steps}")
    if dtype not in (None, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype should be bfloat16, float32 or float64, but is {dtype}")


def _route(m: int, n: int, steps: int, route: str) -> str:
    if route != "auto":
        return route
    return "gram" if steps > 2 and max(m, n) >= GRAM_ASPECT * min(m, n) else "direct"


def _per_chunk(numel: int, side: int, dtype: torch.dtype, *, threads: int | None = None) -> int:
    """Return how many matrices to take at a time, so that their temporaries stay within the limit.

    The temporaries of a matrix are about as large as the matrix itself and 5 small Gram matrices. On a CPU the result
    is a multiple of the number of threads, and small enough for the cache.

    Args:
        numel: numbers of a matrix.
        side: of its small Gram matrix.
        dtype: of the computation.
        threads: how many a CPU uses; None elsewhere.
    """
    each = (numel + 5 * side * side) * dtype.itemsize
    most = max(1, TEMPORARY_BYTES // each)
    if threads is None or most < threads:
        return most
    return max(1, min(most, CACHE_BYTES // each) // threads) * threads
