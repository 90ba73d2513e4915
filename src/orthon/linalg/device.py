"""Which tensors the host can read at once, and which device a tensor on meta stands for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_TYPES = ("cpu",)

_STAND_IN: ContextVar[str] = ContextVar("stand_in", default="meta")


def is_readable(x: Tensor) -> bool:
    """Return whether the host can read the values of a tensor at once.

    For the values of other tensors the host has to wait, which is slow, and impossible while a CUDA graph is captured.
    """
    return x.device.type in _TYPES


def device_type(device: torch.device) -> str:
    """Return the type of a device, such as "cuda". For meta, return the type of the device that it stands for."""
    return device.type if device.type != "meta" else _STAND_IN.get()


@contextmanager
def meta_stands_for(device: torch.device) -> Iterator[None]:
    """Within the block, let computations on meta tensors take the code paths that they take on a device.

    Paths that need values of tensors are not taken.
    """
    before = _STAND_IN.set(device.type)
    try:
        yield
    finally:
        _STAND_IN.reset(before)
