"""Which gradients are not finite, or not zero, on this rank."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg.kernels import SMALL
from orthon.step.member import Member


class Gradients:
    """The gradients of a step, as long as the same parameters have some, of the same kinds.

    Args:
        members: all parameters.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = [member for member in members if member.grad is not None]
        grads = [member.grad for member in self._members if member.grad is not None]
        # On a CPU a sum takes a third of the time of a norm, and one for many small gradients less than one for each.
        self._sums = all(g.device.type == "cpu" and g.dtype == grads[0].dtype and g.itemsize > 2 for g in grads)
        alike: dict[tuple[int, ...], list[Member]] = {}
        for member, grad in zip(self._members, grads, strict=True):
            alike.setdefault(tuple(grad.shape), []).append(member)
        self._alike = [(math.prod(shape) < SMALL, members) for shape, members in alike.items()]

    def nonfinite(self) -> list[str]:
        """Return the names of the parameters whose gradients have infinities or NaNs. Waits for an accelerator."""
        # One quick pass. It may overflow, so that a closer look decides.
        if not self._members or math.isfinite(float(self._quick().sum())):
            return []
        return [m.name for m in self._members if m.grad is not None and not m.grad.isfinite().all()]

    def all_finite(self) -> Tensor | None:
        """Return whether all gradients are finite, a boolean on the device; None if there are no gradients."""
        return self._norms(math.inf).isfinite().all() if self._members else None

    def all_zero(self) -> Tensor:
        """Return whether all gradients are zero, a boolean on the device."""
        return self._norms(math.inf).amax() == 0 if self._members else torch.ones((), dtype=torch.bool)

    def _quick(self) -> Tensor:
        """Return numbers that are finite only if the gradients are."""
        if not self._sums:
            return self._norms(2.0)
        sums = []
        for are_small, members in self._alike:
            grads = [member.grad for member in members if member.grad is not None]
            sums += [torch.stack(grads)] if are_small else grads
        return torch.stack([grad.sum() for grad in sums])

    def _norms(self, order: float) -> Tensor:
        """Return the norms of the gradients; that of an empty part is zero."""
        grads = [member.grad for member in self._members if member.grad is not None]
        norms = torch._foreach_norm([grad if grad.numel() else grad.new_zeros(1) for grad in grads], order)
        return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])
