"""Which tensors the host can read at once, and which device a tensor on meta stands for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_TYPES = ("cpu",)

# The type of device that meta stands for, and whether what the host asks about values is answered as usual.
_STAND_IN: ContextVar[tuple[str, bool]] = ContextVar("stand_in", default=("meta", False))


def is_readable(x: Tensor) -> bool:
    """Return whether the host can read the values of a tensor at once.

    For the values of other tensors the host has to wait, which is slow, and impossible while a CUDA graph is captured.
    """
    if x.is_meta:
        stand_in, as_usual = _STAND_IN.get()
        return as_usual and stand_in in _TYPES
    return x.device.type in _TYPES


def device_type(device: torch.device) -> str:
    """Return the type of a device, such as "cuda". For meta, return the type of the device that it stands for."""
    return device.type if device.type != "meta" else _STAND_IN.get()[0]


@contextmanager
def meta_stands_for(device: torch.device, *, as_usual: bool = False) -> Iterator[None]:
    """Within the block, let computations on meta tensors take the code paths that they take on a device.

    Args:
        device: the one.
        as_usual: whether the host reads values, where the device lets it, and somebody answers for them (`plan` does).
            If not, nothing is read. That is the longer way, which is taken for any values.
    """
    before = _STAND_IN.set((device.type, as_usual))
    try:
        yield
    finally:
        _STAND_IN.reset(before)
