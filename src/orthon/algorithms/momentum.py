"""Momentum of the rules that take its polar factor."""

import torch
from torch import Tensor

from orthon.batch import Batch
from orthon.linalg import compute_dtype, in_cache
from orthon.options import Group


def updated_momentum(batch: Batch, group: Group, dtype: torch.dtype) -> Tensor:
    """Update the momentum, M ← momentum·M + gain·G, and return M, or with Nesterov's look ahead momentum·M + gain·G.

    Args:
        batch: with a state "momentum".
        group: with the options "momentum", "nesterov", "ema" and "maximize". gain is 1, or 1 − momentum with `ema`.
        dtype: of the result.

    Returns:
        (b, m, n).
    """
    stored = batch.stacked("momentum")
    limits = torch.finfo(stored.dtype)
    momentum = group["momentum"]
    gain = (1 - momentum if group["ema"] else 1.0) * (-1 if group["maximize"] else 1)
    keep = 1 - batch.gated(1 - momentum)
    result = torch.empty_like(stored, dtype=dtype)
    for whole in zip(stored.unbind(), batch.grads, result.unbind(), strict=True):
        for kept, G, U in in_cache(*whole):
            M = kept.to(compute_dtype(kept.dtype))
            M.mul_(keep).add_(G, alpha=gain)
            U.copy_((M * momentum).add_(G, alpha=gain) if group["nesterov"] else M)
            if M is not kept:  # float16, whose range a sum may leave
                kept.copy_(M.clamp_(limits.min, limits.max))
    return result


def added_gradients(batch: Batch, group: Group, *, norms: bool) -> tuple[Tensor, Tensor | None]:
    """Add the gradients to the momentum, M ← M + G, and return M with the ℓ1 norms of this rank's part of its rows.

    Args:
        batch: with a state "momentum".
        group: with the option "maximize".
        norms: whether they are asked for.

    Returns:
        (b, m, n), and (b, m) in float64, or None.
    """
    stored = batch.stacked("momentum")
    limits = torch.finfo(stored.dtype)
    turned, sign = batch.reads_transposed, -1 if group["maximize"] else 1
    sums = []
    for kept, grad in zip(stored.unbind(), batch.grads, strict=True):
        parts = []
        for M, G in in_cache(kept, grad.mT if turned else grad):
            M.add_(G, alpha=sign)
            if M.dtype == torch.float16:  # whose range a sum may leave
                M.clamp_(limits.min, limits.max)
            if norms and M.device.type == "cpu":
                parts.append(M.to(torch.float64, copy=True).abs_().sum(0 if turned else 1))
            elif norms:
                parts.append(torch.linalg.vector_norm(M, 1, dim=0 if turned else 1, dtype=torch.float64))
        if norms:
            sums.append(torch.stack(parts).sum(0) if turned else torch.cat(parts))
    return stored.mT if turned else stored, torch.stack(sums) if norms else None
