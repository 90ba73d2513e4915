"""Matrices added to those of a batch in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.host import device_type

# On a CPU, matrices of fewer numbers are copied into one tensor for an operation on all of them.
SMALL = 1 << 12


def add_each(M: Tensor, matrices: Sequence[Tensor], gain: float) -> Tensor:
    """Add matrices (m, n), times a number, to those of M (b, m, n) in place, and return M."""
    if device_type(M.device) == "cpu" and M[0].numel() < SMALL:
        M.add_(torch.stack(list(matrices)), alpha=gain)
    elif matrices[0].dtype == M.dtype:
        torch._foreach_add_(M.unbind(), list(matrices), alpha=gain)
    else:
        for into, matrix in zip(M.unbind(), matrices, strict=True):
            into.add_(matrix, alpha=gain)
    return M
