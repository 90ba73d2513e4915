"""Whether torch or a Triton kernel computes a product: Triton where it has been measured to be faster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

MODES = ("auto", "torch", "triton")


@dataclass(frozen=True)
class Crossover:
    """From which size on a measurement found a Triton kernel faster than torch.

    Attributes:
        kernel: name of the function in `orthon.linalg.kernels`.
        capability: of the CUDA device, such as (9, 0).
        dtype: of the matrices.
        batched: whether there were several matrices.
        size: the smallest size with which the kernel was faster; the function says what its size is.
    """

    kernel: str
    capability: tuple[int, int]
    dtype: torch.dtype
    batched: bool
    size: int


# Nothing has been measured yet, so that torch computes everything. A line belongs here only with a measurement.
CROSSOVERS: tuple[Crossover, ...] = ()

# float64 stays with torch: training in it is for comparisons.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_MODE: ContextVar[str] = ContextVar("mode", default="auto")


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Within the block, choose what computes the products of `orthon.linalg.kernels`, to measure or to test it.

    Args:
        mode: "auto" for Triton where `CROSSOVERS` say that it is faster, and torch elsewhere; "torch"; or "triton"
            wherever it can run: for matrices of 16 or 32 bits on CUDA devices, or on any device under
            TRITON_INTERPRET=1.

    Raises:
        ValueError: if there is no such mode.
        ImportError: if the mode is "triton" and Triton is not installed.
    """
    if mode not in MODES:
        raise ValueError(f"mode should be one of {', '.join(map(repr, MODES))}, but is {mode!r}")
    if mode == "triton" and not _is_installed():
        raise ImportError("mode 'triton' needs Triton; pip install triton, or use 'auto' or 'torch'")
    before = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(before)


def in_triton(kernel: str, like: Tensor, size: int) -> bool:
    """Return whether a Triton kernel should compute a product.

    Args:
        kernel: name of the function.
        like: one of its matrices, (b, m, n) or (m, n).
        size: of the work, as the function measures it.
    """
    mode = _MODE.get()
    if mode == "torch" or like.dtype not in _DTYPES:
        return False
    if mode == "triton":
        return like.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if not CROSSOVERS or like.device.type != "cuda" or not _is_installed():
        return False
    batched = like.ndim == 3 and len(like) > 1
    here = (kernel, torch.cuda.get_device_capability(like.device), like.dtype, batched)
    return any(here == (c.kernel, c.capability, c.dtype, c.batched) and size >= c.size for c in CROSSOVERS)


@cache
def _is_installed() -> bool:
    return find_spec("triton") is not None
