"""Sums of gradients in the stored momentum, for the rules that take its polar factor."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from orthon.batch import Batch
from orthon.linalg import compute_dtype
from orthon.options import Group


@contextmanager
def accumulated(batch: Batch, group: Group, *, keep: float, gain: float = 1.0) -> Iterator[Tensor]:
    """Give M ← keep·M + gain·G (b, m, n) in a dtype to compute in; what is done to it within is stored.

    Args:
        batch: with a state "momentum", a sum of gradients.
        group: with the option "maximize".
        keep: what is left of the momentum.
        gain: weight of the new gradient.
    """
    stored = batch.stacked_like_weights("momentum")
    M = stored.to(compute_dtype(stored.dtype))
    if keep != 1.0:
        M.mul_(1 - batch.gated(1 - keep))
    batch.add_gradients(M, -gain if group["maximize"] else gain)
    yield M
    if M is not stored:
        # A sum may leave the range of 16 bits.
        limits = torch.finfo(stored.dtype)
        stored.copy_(M.clamp_(limits.min, limits.max))
