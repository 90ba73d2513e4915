"""What a device is, and which tensors the host can look into."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_TYPES = ("cpu",)

_STAND_IN: ContextVar[str] = ContextVar("stand_in", default="meta")


def is_readable(x: Tensor) -> bool:
    """Return whether the values of a tensor are at hand; for others the host waits, which no CUDA graph can."""
    return x.device.type in _TYPES


def device_type(device: torch.device) -> str:
    """Return the type of a device: where to compute goes by it. That of meta is the one that it stands for."""
    return device.type if device.type != "meta" else _STAND_IN.get()


@contextmanager
def meta_stands_for(device: torch.device) -> Iterator[None]:
    """Let tensors on meta take the ways in a block that those on a device take, as far as no values are needed."""
    before = _STAND_IN.set(device.type)
    try:
        yield
    finally:
        _STAND_IN.reset(before)
