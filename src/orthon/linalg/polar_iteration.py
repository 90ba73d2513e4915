"""The iteration for polar factors: odd polynomials that bring the singular values of a matrix to 1."""

import torch
from torch import Tensor

from orthon.linalg.axis_norms import axis_norms
from orthon.linalg.device import is_readable
from orthon.linalg.gram import symmetric_gram
from orthon.linalg.kernels import symmetric_product
from orthon.linalg.norms import divide_by_norm, frobenius_norm, inverse_norm, to_unit_scale
from orthon.linalg.polynomials import SAFETY, Polynomial
from orthon.linalg.precision import factor_dtype, full_precision
from orthon.linalg.row_ranks import Computation, RowRanks


def iterate(
    U: Tensor, out: Tensor, ranks: RowRanks, segments: list[list[Polynomial]], *, tighten: bool
) -> Computation[None]:
    """Apply polynomials to U, one after the other, and write the result into `out`.

    Args:
        U: this rank's rows of the matrices, (b, m/ranks, n).
        out: of the same shape, in the dtype of the iteration. It may be U.
        ranks: the ranks that hold rows. If there are several, the Gram matrices are n × n. With one rank, they are
            those of the shorter side.
        segments: the polynomials. Those of a segment are composed, and then applied together.
        tighten: whether to scale the largest singular value closer to 1 than the Frobenius norm does.
    """
    of_rows = ranks.size == 1 and U.shape[-2] <= U.shape[-1]  # whether Gram matrices are of rows
    buffers, last = (out, torch.empty_like(out)), len(segments) - 1  # used in turn; the last result is in out
    X, gram = buffers[(last + 1) % 2], None
    # The first step scales the matrix as well, if the host sees that its size allows that.
    if tighten and ranks.size == 1 and is_readable(U):
        X = U if U.dtype == X.dtype and U is not buffers[last % 2] else X.copy_(U)
        gram = yield from symmetric_gram(X, ranks, of_rows=of_rows)
    if gram is None or not _is_moderate(gram):
        gram, X = None, buffers[(last + 1) % 2]
        size = yield from frobenius_norm(U, ranks)
        if tighten:
            to_unit_scale(U, size, X)
        else:
            divide_by_norm(U, size, X)
    for i, segment in enumerate(segments):
        if gram is None:
            gram = yield from symmetric_gram(X, ranks, of_rows=of_rows)
        into = buffers[(last - i) % 2]
        with full_precision():
            if tighten and i == 0:
                scale = _tighten_(gram)
                slope, R = _compose(gram, segment)
                _add_product_(torch.mul(X, scale, out=into), R.mul_(scale), X, of_rows, slope=slope)
            else:
                slope, R = _compose(gram, segment)
                _add_product_(into.copy_(X), R, X, of_rows, slope=slope)
        X, gram = into, None


def _add_product_(into: Tensor, R: Tensor, X: Tensor, of_rows: bool, *, slope: float) -> None:
    """Multiply `into` by the slope, and add R X if R is of the rows, or X R."""
    into.baddbmm_(*((R, X) if of_rows else (X, R)), beta=slope)


def _compose(G: Tensor, steps: list[Polynomial]) -> tuple[float, Tensor]:
    """Return s and R such that s X + X R is what the polynomials, one after the other, make of X, where G is XᵀX.

    s I + R as one matrix would lose R: beside the identity, 16-bit numbers keep nothing of small entries.

    All matrices here are polynomials in G. That they are symmetric only up to rounding does no harm: the difference is
    part of the rounding error, and each segment starts from a new Gram matrix.
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
    """Divide Gram matrices so that the singular values of X are at most 1, and the largest is close to 1.

    The bound is the fourth root of the Frobenius norm of the squared Gram matrix. For a Gaussian square matrix of a
    thousand rows it is 1.6 times the largest singular value, and the Frobenius norm is 16 times. The same steps then
    bring singular values to 1 that are ten times smaller.

    Args:
        gram: XᵀX, which is overwritten.

    Returns:
        the factor by which to multiply X, (b, 1, 1). In 16 bits its square is exact, so that XᵀX is still the Gram
        matrix of X. The polynomials would amplify a difference between the two.
    """
    wide = factor_dtype(gram.dtype)
    bound = axis_norms(symmetric_product(gram, gram), dim=(-2, -1), dtype=wide) ** 0.25
    fine = inverse_norm(bound)
    if gram.dtype.itemsize == 2:
        fine = _rounded_down(fine / SAFETY, bits=4)
    gram.mul_(fine.square().to(gram.dtype))
    return fine.to(gram.dtype)


def _rounded_down(x: Tensor, bits: int) -> Tensor:
    """Return the largest numbers with so many significant bits that are at most x ≥ 0."""
    fraction, exponent = torch.frexp(x)
    result: Tensor = torch.ldexp((fraction * 2**bits).floor(), exponent - bits)
    return result


def _is_moderate(gram: Tensor) -> bool:
    """Return whether Gram matrices are of a size that float32 can raise to the fourth power."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=factor_dtype(gram.dtype))
    return bool(((trace > 1e-6) & (trace < 1e8)).all())
