"""Several operations on matrices, one after the other, on parts that stay in the cache."""

from collections.abc import Iterator

from torch import Tensor

# So many numbers at a time stay in the cache of a CPU core. Passes over memory cost more than the operations: four on
# 64 MB, one after the other, took two and a half times as long as on parts (one core of a Sapphire Rapids).
_NUMBERS = 1 << 16


def in_cache(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of matrices (m, n), some at a time on a CPU, and all at once elsewhere."""
    m, n = matrices[0].shape
    rows = max(1, _NUMBERS // max(1, n)) if matrices[0].device.type == "cpu" else max(1, m)
    if rows >= m:
        yield matrices
        return
    for start in range(0, m, rows):
        yield tuple(matrix[start : start + rows] for matrix in matrices)
