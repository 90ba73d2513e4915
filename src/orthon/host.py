"""Which tensors the host can look into."""

from torch import Tensor

_TYPES = ("cpu",)


def is_readable(x: Tensor) -> bool:
    """Return whether the values of a tensor are at hand; for others the host waits, which no CUDA graph can."""
    return x.device.type in _TYPES
