"""Which dtype computes what, and how much of a result is rounding noise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """Return the dtype of the large products for a state stored as `storage`.

    That is the storage's own, but for float16: products of sums of gradients leave its range.
    """
    return torch.float32 if storage == torch.float16 else storage


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of norms and small factorizations: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Noise(NamedTuple):
    """What rounding leaves in a column of a computed product, where exact arithmetic would give zero."""

    of_column: float  # relative to the norm of the column itself
    of_matrix: float  # relative to the Frobenius norm of the product


def rounding_noise(computed_in: torch.dtype) -> Noise:
    """Return the noise of a matrix product computed in `computed_in`, with a margin.

    A product in float32 or float64 errs by a few epsilon through its accumulation, and by a few more that earlier
    steps have left in its operands. One in a 16-bit dtype accumulates in float32, so that mainly its rounded
    operands and entries err, each by up to half an epsilon and independently of each other.
    """
    eps = torch.finfo(computed_in).eps
    if computed_in.itemsize == 2:
        return Noise(of_column=eps / 2, of_matrix=eps / 16)
    return Noise(of_column=16 * eps, of_matrix=64 * eps)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32, also where the user allows TF32 or bfloat16 for them."""
    allowed = torch.get_float32_matmul_precision()
    if allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
