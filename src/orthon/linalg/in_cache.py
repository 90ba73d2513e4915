"""Parts of matrices that stay in the cache while several operations are done on them."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from orthon.linalg.device import device_type

# How many numbers stay in the caches of two CPU cores. Passes over memory cost more than operations do: on one core of
# a Sapphire Rapids, four operations on 64 MB, one after the other, took two and a half times as long as on parts.
IN_CACHE = 1 << 17


def in_cache(*batches: Tensor | Sequence[Tensor], fraction: float = 1.0) -> Iterator[Any]:
    """Yield the same part of several batches, one part after the other.

    On a CPU a part is some matrices, or some rows of one matrix. Elsewhere the only part is the whole.

    Args:
        batches: tensors (b, m, n), or sequences of b matrices (m, n).
        fraction: of the usual size that a part has, for operations whose temporaries need the cache as well.

    Yields:
        a part of each, (k, p, n), or a list of k matrices (p, n).
    """
    first = batches[0][0]
    (m, n), b = first.shape, len(batches[0])
    if device_type(first.device) != "cpu":
        yield batches
        return
    numbers = int(fraction * IN_CACHE)
    count = max(1, numbers // max(1, m * n))
    rows = max(1, numbers // max(1, n)) if count == 1 else max(1, m)
    for start in range(0, b, count):
        some = [batch[start : start + count] for batch in batches]
        for top in range(0, max(1, m), rows):
            yield some if rows >= m else tuple(_rows(part, top, top + rows) for part in some)


def _rows(part: Tensor | Sequence[Tensor], start: int, stop: int) -> Tensor | list[Tensor]:
    return part[:, start:stop] if isinstance(part, Tensor) else [matrix[start:stop] for matrix in part]
