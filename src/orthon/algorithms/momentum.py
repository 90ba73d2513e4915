"""Momentum: gradients added to what is left of earlier ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Option, decay, flag, structural
from orthon.linalg import compute_dtype, in_cache
from orthon.linalg.axis_norms import axis_norms
from orthon.linalg.device import device_type
from orthon.linalg.kernels import add_each, mix_each

# What `updated_momentum` takes.
MOMENTUM_OPTIONS: Mapping[str, Option] = {
    "momentum": decay(0.95),
    "nesterov": flag(True),
    "ema": structural(flag(False)),
}


def updated_momentum(batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
    """Update the momentum, M ← momentum·M + gain·G, and return M, or with Nesterov's look ahead momentum·M + gain·G.

    The gain is 1, or 1 − momentum with the option "ema".

    Args:
        batch: with a state "momentum", and the options "momentum", "nesterov" and "ema".
        dtype: of the result; None for that in which the momentum is stored.

    Returns:
        (b, m, n), to which the caller may write.
    """
    stored, options = batch.stacked_like_weights("momentum"), batch.options
    limits = torch.finfo(stored.dtype)
    momentum = options["momentum"]
    gain = (1 - momentum if options["ema"] else 1.0) * (-1 if options["maximize"] else 1)
    keep = 1 - batch.gated(1 - momentum)
    result = torch.empty_like(stored, dtype=dtype)
    with batch.writing:
        for kept, G, U in in_cache(stored, batch.grads, result):
            M = kept.to(compute_dtype(kept.dtype))
            mix_each(M, G, keep, gain)
            U.copy_(mix_each(M, G, momentum, gain, out=torch.empty_like(M)) if options["nesterov"] else M)
            if M is not kept:  # float16, whose range a sum may leave
                kept.copy_(M.clamp_(limits.min, limits.max))
    return result


def added_gradients(batch: Batch, *, norms: bool, keep: float | Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the momentum, M ← keep·M + G, with the ℓ1 norms of this rank's part of its rows.

    Args:
        batch: with a state "momentum".
        norms: whether they are asked for.
        keep: a number, or a tensor with one element, 1 in a step that is to be left out; None for 1.

    Returns:
        (b, m, n), the momentum itself, and (b, m) in float64, or None.
    """
    stored = batch.stacked("momentum")
    limits = torch.finfo(stored.dtype)
    turned, sign = batch.reads_transposed, -1 if batch.options["maximize"] else 1
    parts = []
    grads = [grad.mT for grad in batch.grads] if turned else batch.grads
    with batch.writing:  # the gradients are zero in a step that is to be left out
        for M, G in in_cache(stored, grads, fraction=0.5):  # the norms are in float64
            if keep is None:
                add_each(M, G, sign)
            else:
                mix_each(M, G, keep, sign)
            if M.dtype == torch.float16:  # whose range a sum may leave
                M.clamp_(limits.min, limits.max)
            if norms and device_type(M.device) == "cpu":
                parts.append(M.to(torch.float64, copy=True).abs_().sum(1 if turned else 2))
            elif norms:
                parts.append(axis_norms(M, 1, dim=1 if turned else 2, dtype=torch.float64))
    if not norms:
        return stored.mT if turned else stored, None
    if turned:  # a part has some rows of a matrix at least, and all columns
        sums = torch.cat(parts)
        return stored.mT, sums.view(len(stored), len(sums) // len(stored), stored.shape[2]).sum(1)
    return stored, torch.cat([part.flatten() for part in parts]).view(stored.shape[:2])
