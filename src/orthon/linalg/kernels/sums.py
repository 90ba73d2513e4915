"""Matrices that are added to the matrices of a batch in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg.device import device_type

# On a CPU, matrices with fewer numbers than this are copied into one tensor, for one operation on all of them.
SMALL = 1 << 12


def add_each(M: Tensor, matrices: Sequence[Tensor], gain: float) -> Tensor:
    """Add gain times each of b matrices (m, n) to those of M (b, m, n) in place, and return M."""
    if device_type(M.device) == "cpu" and M[0].numel() < SMALL:
        M.add_(torch.stack(list(matrices)), alpha=gain)
    elif matrices[0].dtype == M.dtype:
        torch._foreach_add_(M.unbind(), list(matrices), alpha=gain)
    else:
        for into, matrix in zip(M.unbind(), matrices, strict=True):
            into.add_(matrix, alpha=gain)
    return M


def mix_each(
    M: Tensor, matrices: Sequence[Tensor], keep: float | Tensor, gain: float, *, out: Tensor | None = None
) -> Tensor:
    """Return keep·M + gain·matrices in place, or in `out` if that is given.

    Args:
        M: (b, m, n).
        matrices: b matrices (m, n).
        keep: a number, or a tensor with one element on the device of M.
        gain: factor of the matrices.
        out: (b, m, n), in the dtype of M.
    """
    into = M if out is None else out
    if isinstance(keep, Tensor) or gain != 1 or device_type(M.device) != "cpu":
        return add_each(M.mul_(keep) if out is None else torch.mul(M, keep, out=out), matrices, gain)
    if M[0].numel() < SMALL:
        return torch.add(torch.stack(list(matrices)), M, alpha=keep, out=into)
    for matrix, m, o in zip(matrices, M.unbind(), into.unbind(), strict=True):
        torch.add(matrix, m, alpha=keep, out=o)  # in one pass
    return into
