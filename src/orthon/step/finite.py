"""Which gradients are not finite, or not zero, on this rank."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg.kernels import SMALL
from orthon.step.member import Member


def nonfinite_gradients(members: Sequence[Member]) -> list[str]:
    """Return the names of the parameters whose gradients have infinities or NaNs. Waits for an accelerator."""
    named = [(member.name, member.grad) for member in members if member.grad is not None]
    # One quick pass. It may overflow, so that a closer look decides.
    if not named or math.isfinite(float(_sums(named).sum())):
        return []
    return [name for name, grad in named if not grad.isfinite().all()]


def all_finite(members: Sequence[Member]) -> Tensor | None:
    """Return whether all gradients are finite, a boolean on the device; None if there are no gradients."""
    named = [(member.name, member.grad) for member in members if member.grad is not None]
    return _norms(named, math.inf).isfinite().all() if named else None


def all_zero(members: Sequence[Member]) -> Tensor:
    """Return whether all gradients are zero, a boolean on the device."""
    named = [(member.name, member.grad) for member in members if member.grad is not None]
    return _norms(named, math.inf).amax() == 0 if named else torch.ones((), dtype=torch.bool)


def _sums(named: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Return numbers that are finite only if the gradients are."""
    if any(grad.device.type != "cpu" or grad.dtype != named[0][1].dtype or grad.itemsize == 2 for _, grad in named):
        return _norms(named, 2.0)
    alike: dict[tuple[int, ...], list[Tensor]] = {}
    for _, grad in named:
        alike.setdefault(tuple(grad.shape), []).append(grad)
    # On a CPU a sum takes a third of the time of a norm, and one for many small gradients less than one for each.
    sums = []
    for shape, grads in alike.items():
        sums += [torch.stack(grads)] if math.prod(shape) < SMALL else grads
    return torch.stack([grad.sum() for grad in sums])


def _norms(named: Sequence[tuple[str, Tensor]], order: float) -> Tensor:
    """Return the norms of the gradients; that of an empty part is zero."""
    norms = torch._foreach_norm([grad if grad.numel() else grad.new_zeros(1) for _, grad in named], order)
    return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])
