"""Polar factors of batches of matrices, by odd polynomials of them or exactly."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from orthon.linalg.device import device_type, is_readable
from orthon.linalg.gram import gram_sum
from orthon.linalg.kernels import symmetric_product
from orthon.linalg.polynomials import SAFETY, Polynomial, polynomials
from orthon.linalg.precision import factor_dtype, full_precision, rounding_noise
from orthon.linalg.row_ranks import ONE_RANK, Computation, RowRanks, result_of

METHODS = ("polar_express", "newton_schulz", "svd")
ROUTES = ("auto", "direct", "gram")

# From this ratio of the long to the short side, polynomials of the small Gram matrix are faster than polynomials of
# the matrix itself. By their operations they break even at 1.5. Measured with 5 steps on 2 cores with AMX, in bfloat16
# (float32), the Gram route takes 1.11 (1.03) of the time of the other at 1.5 with short sides of 768, 1.02 (0.93) at
# 2, 0.91 (0.85) at 3, and 0.85 (0.78) at 4. It rounds twice as much, which is why it is left where it gains little.
GRAM_ASPECT = 2.5

# In 16 bits, polynomials are composed for Gram matrices of at least this side. In smaller ones rounding does not
# average out: of Gaussian matrices of 8×32 to 32×96, 6 to 12 % end with a singular value above 1.2, up to 26; of
# 48×144 0.2 %, of 64×192 none.
COMPOSED_SIDE = 128

# Of so many numbers and fewer, a CPU computes the polar factor in float32 in half of the time, in hardware or not.
SMALL_ON_CPU = 2048

# How many polynomials the Gram route composes, after the first, before it applies them and computes the Gram matrix
# anew. What rounding has left in it is multiplied by up to a² in each: by 68 in the first, which therefore stays
# alone, and by 16 and less later. Three instead of two make the error in float32 five times larger.
STEPS_PER_GRAM = 2

# So many bytes of temporaries stay in the cache of CPU cores. Two matrices of 768×3072 in bfloat16 at a time, one for
# each of 2 cores, take 15 % less time than twelve; one at a time takes twice as long, as the cores then share each
# product.
CACHE_BYTES = 32 << 20

# Temporaries of more bytes are avoided by taking the matrices of a batch in turn.
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

    A zero matrix gives zero. So do the directions that U does not have, up to rounding: the iterations multiply what it
    leaves in them by the slopes of all polynomials, up to 1000 in 5 steps. In float32 that remains below 1e-4; in
    bfloat16 it can reach 1, but for rows and columns that are zero or equal.

    The Polar Express brings the singular values of matrices with condition numbers to 100 into [0.87, 1.13] in 5 steps,
    and into [0.99, 1.01] in 6; a condition number of 1000 takes 7. The "gram" route in bfloat16 reaches 1.2 after 5;
    for short sides below 128 it takes one polynomial at a time there.

    Args:
        U: (..., m, n), of any scale and floating dtype.
        method: "polar_express" (Amsel et al., arXiv 2505.16932), with the best polynomial for each step;
            "newton_schulz", with Keller Jordan's; or "svd", exactly, in float32 or float64.
        steps: of an iteration.
        route: "direct" computes polynomials of the matrix, "gram" of its small Gram matrix; "auto" takes the faster.
        dtype: of the computation and the result, by default `polar_dtype`'s for U. Not float16, whose range is too
            short.
        overwrite: whether the result may take the place of U, where that is contiguous and has its dtype.

    Returns:
        (..., m, n), in `dtype`; for "svd" in float32 where that is wider.

    Raises:
        ValueError: if there is no such method or route, `steps` is less than 1, or `dtype` is none for it.
    """
    m, n = U.shape[-2:]
    dtype = dtype or polar_dtype(U.dtype, U.device, U.shape[-2:])
    _check(method, steps, route, dtype)
    batch = U.reshape(math.prod(U.shape[:-2]), m, n)
    made_in = factor_dtype(dtype) if method == "svd" else dtype
    overwrite = overwrite and batch.dtype == made_in and batch.is_contiguous()
    result = batch if overwrite else torch.empty(batch.shape, dtype=made_in, device=U.device)
    if result.numel() > 0:
        segments = _segments(method, steps, dtype, _route(m, n, steps, route), min(m, n))
        on_cpu = device_type(U.device) == "cpu"
        per_chunk = _per_chunk(m * n, min(m, n), result.dtype, threads=torch.get_num_threads() if on_cpu else None)
        for part, out in zip(torch.split(batch, per_chunk), torch.split(result, per_chunk), strict=True):
            if method == "svd":
                out.copy_(_by_svd(part, result.dtype))
            else:
                into = part if overwrite else out
                result_of(_iterate(part, into, ONE_RANK, segments, tighten=method == "polar_express"))
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

    Only sums of n × n Gram matrices are communicated, one for every two steps; all ranks repeat what is computed from
    them. "svd" takes the eigenvectors of one, in float64, which leaves an error of epsilon times the square of the
    condition number.

    Args:
        U: this rank's rows of the matrices, (b, m/ranks, n), as for `polar`.
        ranks: the ranks that together hold all m rows.
        method: as for `polar`.
        steps: as for `polar`.
        dtype: as for `polar`; the same on all ranks, and so to be given where their processors may differ.
        most: at least as many as the matrices here. So often it pauses, where that should not depend on their number.

    Returns:
        (b, m/ranks, n), in the dtype of `polar`.

    Raises:
        ValueError: if there is no such method, `steps` is less than 1, or `dtype` is none for it.
    """
    b, _, n = U.shape
    dtype = dtype or polar_dtype(U.dtype, U.device, (n, n))
    _check(method, steps, "gram", dtype)
    result = torch.empty(U.shape, dtype=factor_dtype(dtype) if method == "svd" else dtype, device=U.device)
    segments = _segments(method, steps, dtype, "gram", n)
    per_chunk = _per_chunk(n * n, n, result.dtype)  # the same on all ranks, however many rows each has
    for start in range(0, b if most is None else most, per_chunk):
        part, out = U[start : start + per_chunk], result[start : start + per_chunk]
        if method == "svd":
            out.copy_((yield from _by_eigenvectors(part, ranks)))
        else:
            yield from _iterate(part, out, ranks, segments, tighten=method == "polar_express")
    return result


def polar_dtype(storage: torch.dtype, device: torch.device, shape: Sequence[int]) -> torch.dtype:
    """Return the dtype in which the polar factor of a matrix is computed fastest, and well enough for a training step.

    That is bfloat16 on GPUs and on CPUs that multiply matrices of it in hardware, and float32 on other CPUs and for
    the smallest matrices; float64 for float64.

    Args:
        storage: dtype of the matrix.
        device: on which it is.
        shape: of the matrix.
    """
    if storage == torch.float64:
        return torch.float64
    if device.type == "cpu" and math.prod(shape) <= SMALL_ON_CPU:
        return torch.float32
    return torch.bfloat16 if device.type != "cpu" or _cpu_multiplies_bfloat16() else torch.float32


def polar_flops(m: int, n: int, *, method: str = "polar_express", steps: int = 5, route: str = "auto") -> float:
    """Return how many floating-point operations the polar factor of one m × n matrix takes, about."""
    short, long = min(m, n), max(m, n)
    if method == "svd":  # Golub and Van Loan, "Matrix Computations": R-SVD, and the product of the factors
        return 6.0 * long * short**2 + 20.0 * short**3 + 2.0 * short**2 * long
    return _flops(long, short, method, _segments(method, steps, torch.float32, _route(m, n, steps, route), min(m, n)))


def shards_cost(m: int, n: int, *, method: str = "polar_express", steps: int = 5) -> tuple[int, float]:
    """Return what `polar_on_shards` takes of a rank with m rows, about: sums of n × n, and operations, for a matrix."""
    if method == "svd":
        return 1, 4.0 * m * n**2 + 25.0 * n**3
    segments = _segments(method, steps, torch.float32, "gram", n)
    return len(segments), _flops(m, n, method, segments)


def _flops(m: int, n: int, method: str, segments: list[list[Polynomial]]) -> float:
    flops = 2.0 * n**3 if method == "polar_express" else 0.0  # the norm of the squared Gram matrix
    for segment in segments:
        products = 1 + 4 * (len(segment) - 1)  # of small matrices
        flops += 4.0 * n**2 * m + 2.0 * n**3 * products
    return flops


@cache
def _cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has AMX tiles for bfloat16: other instructions for it are no faster than float32's."""
    if capabilities := getattr(torch.cpu, "get_capabilities", None):  # not in all releases of torch
        return bool(capabilities().get("amx_bf16", False))
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _check(method: str, steps: int, route: str, dtype: torch.dtype) -> None:
    if method not in METHODS:
        raise ValueError(f"method should be one of {', '.join(METHODS)}, but is {method!r}")
    if route not in ROUTES:
        raise ValueError(f"route should be one of {', '.join(ROUTES)}, but is {route!r}")
    if steps < 1:
        raise ValueError(f"steps should be at least 1, but is {steps}")
    if dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype should be bfloat16, float32 or float64, but is {dtype}")


def _route(m: int, n: int, steps: int, route: str) -> str:
    if route != "auto":
        return route
    return "gram" if steps > 2 and max(m, n) >= GRAM_ASPECT * min(m, n) else "direct"


def _segments(method: str, steps: int, dtype: torch.dtype, route: str, side: int) -> list[list[Polynomial]]:
    """Return the polynomials, cut into those that are composed before they are applied; `side` is the Gram matrix's."""
    composed = route == "gram" and steps > 2 and (dtype.itemsize > 2 or side >= COMPOSED_SIDE)
    first, *rest = polynomials(method, steps, dtype, composed=composed)
    length = STEPS_PER_GRAM if composed else 1
    return [[first], *(rest[i : i + length] for i in range(0, len(rest), length))]


def _per_chunk(numel: int, side: int, dtype: torch.dtype, *, threads: int | None = None) -> int:
    """Return of how many matrices the temporaries stay within the limit: one like it, and up to 5 of the small side.

    For CPU threads, so few that they stay in the cache, and as many for each thread.
    """
    each = (numel + 5 * side * side) * dtype.itemsize
    most = max(1, TEMPORARY_BYTES // each)
    if threads is None or most < threads:
        return most
    return max(1, min(most, CACHE_BYTES // each) // threads) * threads


def _iterate(
    U: Tensor, out: Tensor, ranks: RowRanks, segments: list[list[Polynomial]], *, tighten: bool
) -> Computation[None]:
    """Write what the polynomials make of U into `out`.

    Args:
        U: this rank's rows, (b, m/ranks, n).
        out: of the same shape, in the dtype of the iteration; it may be U.
        ranks: that hold rows. If there are several, Gram matrices are n × n; if one, of the shorter side.
        segments: the polynomials; those of a segment are composed first.
        tighten: scale the largest singular value closer to 1 than the Frobenius norm does.
    """
    rows = ranks.size == 1 and U.shape[-2] <= U.shape[-1]  # whether Gram matrices are of rows
    buffers, last = (out, torch.empty_like(out)), len(segments) - 1  # in turn, so that the last one ends in out
    X, gram = buffers[(last + 1) % 2], None
    # Scaled together with the first step, where the host sees that its size allows that.
    if tighten and ranks.size == 1 and is_readable(U):
        X = U if U.dtype == X.dtype and U is not buffers[last % 2] else X.copy_(U)
        gram = yield from _gram(X, ranks, rows)
    if gram is None or not _is_moderate(gram):
        gram, X = None, buffers[(last + 1) % 2]
        size = yield from _frobenius(U, ranks)
        X.copy_(U).mul_(_inverse(size).to(X.dtype))
    for i, segment in enumerate(segments):
        if gram is None:
            gram = yield from _gram(X, ranks, rows)
        into = buffers[(last - i) % 2]
        with full_precision():
            if tighten and i == 0:
                scale = _tighten_(gram)
                slope, R = _compose(gram, segment)
                _multiply(R.mul_(scale), X, rows, into=torch.mul(X, scale, out=into), slope=slope)
            else:
                slope, R = _compose(gram, segment)
                _multiply(R, X, rows, into=into.copy_(X), slope=slope)
        X, gram = into, None


def _multiply(R: Tensor, X: Tensor, rows: bool, *, into: Tensor, slope: float) -> None:
    """Multiply `into` by the slope, and add R X, or X R."""
    into.baddbmm_(*((R, X) if rows else (X, R)), beta=slope)


def _gram(X: Tensor, ranks: RowRanks, rows: bool) -> Computation[Tensor]:
    """Return the Gram matrices of the rows of X, or of its columns, which all ranks sum."""
    if ranks.size == 1:
        with full_precision():
            return symmetric_product(X, X.mT) if rows else symmetric_product(X.mT, X)
    upper = (yield from gram_sum(X, ranks)).triu_()
    mirrored: Tensor = upper.add_(upper.triu(1).mT)
    return mirrored


def _compose(G: Tensor, steps: list[Polynomial]) -> tuple[float, Tensor]:
    """Return s and R such that the polynomials, one after the other, take X to s X + X R, where G is XᵀX.

    The part of the identity stays apart: beside it, 16-bit numbers would hold nothing of a small R.
    """
    slope, R = 1.0, None
    for i, (a, b, c) in enumerate(steps):
        P = symmetric_product(G, G, add=G, beta=b, alpha=c)  # X becomes a X + X P
        # (s I + R) (a I + P)
        R = P if R is None else symmetric_product(R, P, add=R, beta=a).add_(P, alpha=slope)
        slope *= a
        if i + 1 < len(steps):
            half = symmetric_product(P, G, add=G, beta=a)
            G = symmetric_product(half, P, add=half, beta=a)
    assert R is not None
    return slope, R


def _tighten_(gram: Tensor) -> Tensor:
    """Divide Gram matrices so that the singular values of X are at most 1, but closer to it than by the Frobenius norm.

    The bound is the fourth root of the Frobenius norm of the squared Gram matrix. For a Gaussian square matrix of a
    thousand rows it is 1.6 times the largest singular value, and the Frobenius norm 16 times: the same steps raise
    singular values that are ten times smaller.

    Args:
        gram: Xᵀ X, which is overwritten.

    Returns:
        what X is to be multiplied by, (b, 1, 1). In 16 bits its square is exact, so that X and the Gram matrix still
        belong together: the polynomials amplify what parts them.
    """
    wide = factor_dtype(gram.dtype)
    bound = torch.linalg.vector_norm(symmetric_product(gram, gram), dim=(-2, -1), dtype=wide) ** 0.25
    fine = _inverse(bound)
    if gram.dtype.itemsize == 2:
        fine = _rounded_down(fine / SAFETY, bits=4)
    gram.mul_(fine.square().to(gram.dtype))
    return fine.to(gram.dtype)


def _rounded_down(x: Tensor, bits: int) -> Tensor:
    """Return numbers with so many significant bits that are at most x ≥ 0."""
    fraction, exponent = torch.frexp(x)
    result: Tensor = torch.ldexp((fraction * 2**bits).floor(), exponent - bits)
    return result


def _is_moderate(gram: Tensor) -> bool:
    """Return whether Gram matrices are of a size that can be raised to the fourth power, in float32."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=factor_dtype(gram.dtype))
    return bool(((trace > 1e-6) & (trace < 1e8)).all())


def _frobenius(U: Tensor, ranks: RowRanks) -> Computation[Tensor]:
    """Return the Frobenius norms of the whole matrices, (b,), without overflow, in float64 where that is needed."""
    wide = factor_dtype(U.dtype)
    size: Tensor = torch.linalg.vector_norm(U, dim=(-2, -1)).to(wide)  # a dtype given to it would be slow
    # CPUs take long to sum up in float64, and GPUs to tell whether it is needed.
    if not is_readable(size) or not bool(((size > 1e-15) & (size < 1e15)).all()):
        size = torch.linalg.vector_norm(U, dim=(-2, -1), dtype=torch.float64)
    if ranks.size > 1:
        squares: Tensor = yield from ranks.sum(size.double().square())
        size = squares.sqrt()
    return size


def _inverse(size: Tensor) -> Tensor:
    """Return 1/size (b, 1, 1), and zero where there is nothing, or less than float32 can invert."""
    return torch.where(size < 4 * torch.finfo(torch.float32).tiny, 0, 1 / size)[:, None, None]


def _by_svd(U: Tensor, dtype: torch.dtype) -> Tensor:
    size = result_of(_frobenius(U, ONE_RANK))
    W, S, Vt = torch.linalg.svd(U.to(dtype) * _inverse(size).to(dtype), full_matrices=False)
    noise = rounding_noise(U.dtype).of_matrix
    with full_precision():
        factor: Tensor = (W * (noise < S)[:, None]) @ Vt
    # Rows and columns of zeros are exact. The decomposition leaves a little in them, which rules may make much of.
    return factor.mul_((U != 0).any(-1, keepdim=True)).mul_((U != 0).any(-2, keepdim=True))


def _by_eigenvectors(U: Tensor, ranks: RowRanks) -> Computation[Tensor]:
    size = yield from _frobenius(U, ranks)
    X = U.double() * _inverse(size).double()
    gram = yield from _gram(X, ranks, rows=False)
    squares, V = torch.linalg.eigh(gram)
    # Rounding leaves that much in the Gram matrix itself.
    noise = max(rounding_noise(U.dtype).of_matrix, 16 * math.sqrt(torch.finfo(torch.float64).eps))
    weight = torch.where(squares > noise**2, squares.clamp(min=noise**2).rsqrt(), 0)
    factor: Tensor = X @ ((V * weight[:, None]) @ V.mT)
    return factor.mul_((gram.diagonal(dim1=-2, dim2=-1) > 0)[:, None])  # columns of zeros, as above
