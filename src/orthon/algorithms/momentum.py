"""Momentum: gradients added to what is left of earlier ones."""

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group
from orthon.linalg import compute_dtype, in_cache
from orthon.linalg.device import device_type
from orthon.linalg.kernels import add_each, mix_each


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
    for kept, G, U in in_cache(stored, batch.grads, result):
        M = kept.to(compute_dtype(kept.dtype))
        mix_each(M, G, keep, gain)
        U.copy_(mix_each(M, G, momentum, gain, out=torch.empty_like(M)) if group["nesterov"] else M)
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
    parts = []
    grads = [grad.mT for grad in batch.grads] if turned else batch.grads
    for M, G in in_cache(stored, grads, share=0.5):  # the norms are in float64
        add_each(M, G, sign)
        if M.dtype == torch.float16:  # whose range a sum may leave
            M.clamp_(limits.min, limits.max)
        if norms and device_type(M.device) == "cpu":
            parts.append(M.to(torch.float64, copy=True).abs_().sum(1 if turned else 2))
        elif norms:
            parts.append(torch.linalg.vector_norm(M, 1, dim=1 if turned else 2, dtype=torch.float64))
    if not norms:
        return stored.mT if turned else stored, None
    if turned:  # a part has some rows of a matrix at least, and all columns
        sums = torch.cat(parts)
        return stored.mT, sums.view(len(stored), len(sums) // len(stored), stored.shape[2]).sum(1)
    return stored, torch.cat([part.flatten() for part in parts]).view(stored.shape[:2])
