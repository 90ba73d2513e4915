"""Which dtype computes what, and how much of a result is rounding noise."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def not_real(name: str, value: object) -> TypeError:
    """Return the error for a parameter that should be a tensor of real floating-point numbers."""
    allowed = ", ".join(map(str, FLOAT_DTYPES))
    found = f"in {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return TypeError(f"{name} should be a tensor in one of {allowed}, but is {found}")


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """Return the dtype of the large products for a state stored as `storage`.

    That is the storage's own dtype, or float32 for float16, whose range is too short for products of sums of gradients.
    """
    return torch.float32 if storage == torch.float16 else storage


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of norms and small factorizations: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Noise(NamedTuple):
    """How large a column of a computed product is from rounding alone, if it would be zero in exact arithmetic."""

    of_column: float  # relative to the norm of the column itself
    of_matrix: float  # relative to the Frobenius norm of the product


def rounding_noise(computed_in: torch.dtype) -> Noise:
    """Return the noise of a matrix product computed in `computed_in`, with a margin.

    In float32 or float64, the error of a product is a few epsilon from the sum, and a few more from the rounding of its
    operands in earlier steps. In a 16-bit dtype, sums are in float32. The error comes mainly from the rounding of the
    operands and of the result, by up to half an epsilon of each entry, independently of each other.
    """
    eps = torch.finfo(computed_in).eps
    if computed_in.itemsize == 2:
        return Noise(of_column=eps / 2, of_matrix=eps / 16)
    return Noise(of_column=16 * eps, of_matrix=64 * eps)


# The settings of torch for float32 products on CUDA devices and on CPUs.
_CUDA, _CPU = torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul

# The values that mean float32; "none" means that nobody has set anything.
_EXACT = ("ieee", "none")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Within the block, compute float32 products in a given precision on GPUs, and in float32 on CPUs.

    The setting of the user does not matter in the block, and is the same as before after it, whichever of torch's two
    ways it was made in.

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
    """Within the block, compute float32 products in float32, even if the user allows TF32 or bfloat16 for them."""
    is_so = _CUDA.fp32_precision in _EXACT and _CPU.fp32_precision in _EXACT
    return _AS_IT_IS if is_so else float32_products("ieee")


_AS_IT_IS = nullcontext()
