"""Which dtype computes what, and how much of a result is rounding noise."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, cast

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


# What float32 products on CUDA devices, and on CPUs, follow.
_CUDA, _CPU = torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul

# What computes in float32; "none" is where nobody has set anything.
_EXACT = ("ieee", "none")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Compute float32 products on GPUs as told, whatever the user allows for them, and in float32 on CPUs.

    The user's setting is as before afterwards, whichever of torch's two ways it was made in.

    Args:
        precision: "ieee", or "tf32".
    """
    on_cuda, on_cpu = _CUDA.fp32_precision, _CPU.fp32_precision
    changes_cuda = on_cuda != precision and not (precision == "ieee" and on_cuda in _EXACT)
    changes_cpu = on_cpu not in _EXACT
    if changes_cuda:
        _CUDA.fp32_precision = precision
    if changes_cpu:
        _CPU.fp32_precision = "ieee"
    try:
        yield
    finally:
        if changes_cuda:
            _CUDA.fp32_precision = on_cuda
        if changes_cpu:
            _CPU.fp32_precision = on_cpu


def full_precision() -> AbstractContextManager[None]:
    """Compute float32 products in float32, also where the user allows TF32 or bfloat16 for them."""
    return float32_products("ieee")
