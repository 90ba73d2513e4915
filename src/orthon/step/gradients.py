"""This rank's shards of the gradients: brought to how the parameters lie, and whether they are of a usable size."""

import math
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from orthon.linalg.device import device_type
from orthon.linalg.kernels import SMALL
from orthon.sharding import Layout, is_dtensor, local
from orthon.step.member import Member

if TYPE_CHECKING:
    from torch.distributed.tensor._dtensor_spec import DTensorSpec


def take_gradients(members: Iterable[Member], owner: str) -> None:
    """Give each member the gradient that its parameter has now.

    Raises:
        ValueError: for a gradient of another shape than the parameter's.
        TypeError: for a sparse gradient, or one that is a DTensor while the parameter is not.
        NotImplementedError: for placements that cannot be brought to the parameter's.
    """
    for member in members:
        grad, layout = member.param.grad, member.layout
        if grad is None or grad.shape != layout.shape:
            member.grad = _local_gradient(member, owner)
        elif type(grad) is Tensor and layout.mesh is None and grad.layout is torch.strided:
            member.grad = grad
        elif layout.mesh is not None and is_dtensor(grad) and _lies_so(grad._spec, layout):
            part = grad._local_tensor
            member.grad = part if type(part) is Tensor else _arrived(part)
        else:
            member.grad = _local_gradient(member, owner)


def check_devices(members: Iterable[Member], owner: str) -> None:
    """Raise a ValueError if a gradient is on another device than its parameter, as one that has stayed behind.

    Torch refuses to set such a gradient. It is there where a parameter was moved by its `data`.
    """
    for member in members:
        if member.grad is not None and member.grad.device != local(member.param).device:
            raise ValueError(
                f"{owner}: parameter {member.name!r}: its gradient should be on {local(member.param).device}, as the "
                f"parameter is, but is on {member.grad.device}; move the model before the backward pass"
            )


def check_numbers(members: Iterable[Member], owner: str) -> None:
    """Raise a ValueError if a parameter with a gradient is on meta, which has no numbers."""
    for member in members:
        if member.grad is not None and member.grad.is_meta:
            raise ValueError(
                f"{owner}: parameter {member.name!r}: lies on meta, so that it has no numbers; make them by to_empty() "
                "and a load before the first step"
            )


def _lies_so(spec: "DTensorSpec", layout: Layout) -> bool:
    return spec.mesh is layout.mesh and spec.placements == layout.placements


def _local_gradient(member: Member, owner: str) -> Tensor | None:
    param, grad = member.param, member.param.grad
    if grad is None:
        return torch.zeros_like(local(param)) if member.averages and param.requires_grad else None
    where = f"{owner}: parameter {member.name!r}"
    if grad.shape != param.shape:
        raise ValueError(
            f"{where}: the shape of its gradient should be {tuple(param.shape)}, as its own, but is {tuple(grad.shape)}"
        )
    if grad.layout != torch.strided:
        raise TypeError(
            f"{where}: its gradient should be dense, but is {grad.layout}; build the layer with sparse=False"
        )
    if is_dtensor(param) != is_dtensor(grad):
        raise TypeError(f"{where}: should be a DTensor if and only if its gradient is one, but that is {type(grad)}")
    if is_dtensor(grad):
        assert is_dtensor(param)
        if grad.device_mesh != param.device_mesh:
            raise NotImplementedError(
                f"{where}: its gradient lies on {grad.device_mesh}, but should lie on its own mesh {param.device_mesh}"
            )
        if grad.placements != param.placements:
            try:
                grad = grad.redistribute(param.device_mesh, param.placements)
            except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
                raise NotImplementedError(
                    f"{where}: its gradient's placements {grad.placements} should be {param.placements}, and "
                    f"DTensor cannot bring them there: {error}"
                ) from error
        grad = grad.to_local()
    return _arrived(grad)


def _arrived(grad: Tensor) -> Tensor:
    """Return a gradient for which nothing has to be waited any more."""
    return grad.wait() if isinstance(grad, AsyncCollectiveTensor) else grad


# What follows the name of a parameter whose gradient is finite, but too large.
TOO_LARGE = " (too large)"


class Gradients:
    """The gradients of a step, as long as the same parameters have some, of the same kinds.

    Args:
        members: all parameters.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = [member for member in members if member.grad is not None]
        grads = [member.grad for member in self._members if member.grad is not None]
        # On a CPU a sum takes less time than a norm, and one for many small gradients less than one for each. In a sum
        # large numbers may cancel. That is as in torch's own AdamW; rules for matrices cannot do without the norm.
        self._sums = all(device_type(g.device) == "cpu" and g.dtype == grads[0].dtype and g.itemsize > 2 for g in grads)
        alike: dict[tuple[bool, tuple[int, ...]], list[Member]] = {}
        for member, grad in zip(self._members, grads, strict=True):
            alike.setdefault((member.matrices is not None, tuple(grad.shape)), []).append(member)
        self._alike = [(norm, math.prod(shape) < SMALL, members) for (norm, shape), members in alike.items()]
        self._limits = [member.limit for member in self._members]

    def unusable(self) -> list[str]:
        """Return the names of the parameters whose gradients have infinities, NaNs, or numbers above their limit.

        The last have `TOO_LARGE` after their names. It waits for an accelerator.
        """
        # One quick pass. It may overflow, so that a closer look decides.
        if not self._members or float(self.quick().abs().max()) <= min(self._limits):
            return []
        found = []
        for member, limit in zip(self._members, self._limits, strict=True):
            grad = cast(Tensor, member.grad)
            largest = float(grad.abs().max()) if grad.numel() else 0.0
            if not math.isfinite(largest):
                found.append(member.name)
            elif largest > limit:
                found.append(member.name + TOO_LARGE)
        return found

    def all_usable(self, divisor: Tensor | None = None) -> Tensor | None:
        """Return whether all gradients are finite and within their limits, a boolean on the device.

        Args:
            divisor: what they are still to be divided by, one number.

        Returns:
            None if there are no gradients.
        """
        if not self._members:
            return None
        norms = self._norms(math.inf)
        if divisor is not None:
            norms = norms / divisor.to(norms.device).reshape(())
        usable = [norms.isfinite().all()]
        for limit in sorted(set(self._limits)):
            places = [place for place, own in enumerate(self._limits) if own == limit]
            part = norms if len(places) == len(norms) else torch.stack([norms[place] for place in places])
            usable.append((part <= limit).all())
        return torch.stack(usable).all()

    def all_zero(self) -> Tensor:
        """Return whether all gradients are zero, a boolean on the device."""
        return self._norms(math.inf).amax() == 0 if self._members else torch.ones((), dtype=torch.bool, device="cpu")

    def quick(self) -> Tensor:
        """Return a number for each gradient, or for some together, that is finite only if they are."""
        if not self._sums:
            return self._norms(2.0)
        sums = []
        for norm, are_small, members in self._alike:
            each = cast(list[Tensor], list(map(attrgetter("grad"), members)))
            for grad in [torch.stack(each)] if are_small else each:
                sums.append(torch.linalg.vector_norm(grad) if norm else grad.sum())
        return torch.stack(sums)

    def _norms(self, order: float) -> Tensor:
        """Return the norms of the gradients; that of an empty part is zero."""
        grads = [member.grad for member in self._members if member.grad is not None]
        norms = torch._foreach_norm([grad if grad.numel() else grad.new_zeros(1) for grad in grads], order)
        wide = torch.float64 if any(norm.dtype == torch.float64 for norm in norms) else torch.float32
        return torch.stack([norm.to(norms[0].device, wide) for norm in norms])
