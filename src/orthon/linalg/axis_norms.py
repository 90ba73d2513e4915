"""Norms over some axes of a tensor: torch.linalg.vector_norm, with the right shape on each device."""

from collections.abc import Callable

import torch
from torch import Tensor


def _without_axes(
    A: Tensor, order: float = 2, *, dim: int | tuple[int, ...], dtype: torch.dtype | None = None
) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(A, order, dim=dim, dtype=dtype)
    return norms.squeeze(dim) if norms.ndim == A.ndim else norms


# On the device "meta", torch 2.11 keeps axes of length 1, and torch 2.13 does not.
axis_norms: Callable[..., Tensor] = torch.linalg.vector_norm if torch.__version__ >= "2.13" else _without_axes
