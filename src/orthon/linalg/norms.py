"""Norms of rows that do not depend on the order of summation."""

from typing import cast

import torch
from torch import Tensor

from orthon.linalg.in_cache import in_cache


def l1_norms(M: Tensor) -> Tensor:
    """Return the sums of the absolute values of the rows of matrices M (b, m, n), in float64, (b, m)."""
    if M.device.type != "cpu":  # where one pass in float64 takes five times as long as in parts
        return cast(Tensor, torch.linalg.vector_norm(M, 1, dim=-1, dtype=torch.float64))
    by_rows = M.stride(-1) == 1 or M.stride(-2) != 1
    norms = torch.zeros(M.shape[:2], dtype=torch.float64)
    for matrix, norm in zip((M if by_rows else M.mT).unbind(), norms.unbind(), strict=True):
        sums = [part.to(torch.float64, copy=True).abs_().sum(-1 if by_rows else 0) for (part,) in in_cache(matrix)]
        norm.copy_(torch.cat(sums) if by_rows else torch.stack(sums).sum(0))
    return norms
