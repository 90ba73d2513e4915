"""About how much memory orthonormal and polar factors take while they are computed, with what is given and returned."""

import torch

from orthon.linalg.polar import polar_segments
from orthon.linalg.precision import factor_dtype

# For each precision the bytes that a number of B (m, r) takes, and one of an r × r triangle, beside what all take.
_OF_PRODUCTS = {"float32": (0, 0), "tf32": (2, 2), "bf16x3": (6, 10)}


def orthonormalizing_bytes(m: int, r: int, *, precision: str, dtype: torch.dtype) -> float:
    """Return the bytes that the orthonormalization of one matrix B takes.

    Its numbers are made float32 at least. The first step divides them by sums of absolute values, which takes as many.
    In float32 a pass works in place, beside three triangles. In another precision it makes a new B, beside what the
    passes before it were given, and rounded copies of B and of a triangle.

    Args:
        m: the rows of B.
        r: its columns.
        precision: one of `PRECISIONS`.
        dtype: in which B is given.
    """
    wide = factor_dtype(dtype).itemsize
    of_b, of_triangle = _OF_PRODUCTS[precision]
    in_place = precision == "float32" or wide > 4
    return max(2.0 * wide * m * r, (wide if in_place else 3 * wide + of_b) * m * r + (3 * wide + of_triangle) * r * r)


def polar_bytes(m: int, n: int, *, method: str, steps: int, dtype: torch.dtype) -> float:
    """Return the bytes that the polar factor of one matrix takes, for which this is overwritten.

    An iteration takes as much as two matrices, and three Gram matrices or seven, where polynomials of them are
    composed. The decomposition takes three matrices, a square one and a mask.

    Args:
        m: the rows.
        n: the columns.
        method: as for `polar`.
        steps: as for `polar`.
        dtype: of the computation.
    """
    square = min(m, n) ** 2
    if method == "svd":
        return float((3 * m * n + square) * dtype.itemsize + m * n)
    is_composed = max(map(len, polar_segments(m, n, method=method, steps=steps, dtype=dtype))) > 1
    return float((2 * m * n + (7 if is_composed else 3) * square) * dtype.itemsize)
