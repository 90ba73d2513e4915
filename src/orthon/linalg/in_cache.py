"""Several operations on matrices, one after the other, on parts that stay in the cache."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from orthon.linalg.device import device_type

# So many numbers at a time stay in the caches of two CPU cores. Passes over memory cost more than the operations: four
# on 64 MB, one after the other, took two and a half times as long as on parts (one core of a Sapphire Rapids).
_NUMBERS = 1 << 17


def in_cache(*batches: Tensor | Sequence[Tensor], share: float = 1.0) -> Iterator[Any]:
    """Yield the same parts of batches of matrices: on a CPU some matrices, or some rows of one, elsewhere all at once.

    Args:
        batches: tensors (b, m, n), or sequences of b matrices (m, n).
        share: how much of the usual number to yield at a time, where wider temporaries need the cache as well.

    Yields:
        a part of each, (k, p, n), or a list of k matrices (p, n).
    """
    first = batches[0][0]
    (m, n), b = first.shape, len(batches[0])
    if device_type(first.device) != "cpu":
        yield batches
        return
    numbers = int(share * _NUMBERS)
    count = max(1, numbers // max(1, m * n))
    rows = max(1, numbers // max(1, n)) if count == 1 else max(1, m)
    for start in range(0, b, count):
        some = [batch[start : start + count] for batch in batches]
        for top in range(0, max(1, m), rows):
            yield some if rows >= m else tuple(_rows(part, top, top + rows) for part in some)


def _rows(part: Tensor | Sequence[Tensor], start: int, stop: int) -> Tensor | list[Tensor]:
    return part[:, start:stop] if isinstance(part, Tensor) else [matrix[start:stop] for matrix in part]
