"""This rank's shard of the gradient of each parameter, brought to how the parameter lies."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from orthon.sharding import Layout, is_dtensor, local
from orthon.step.member import Member

if TYPE_CHECKING:
    from torch.distributed.tensor._dtensor_spec import DTensorSpec


def take_gradients(members: Iterable[Member], owner: str) -> None:
    """Give each member the gradient that its parameter has now.

    Raises:
        TypeError: for a sparse gradient, or one that is a DTensor while the parameter is not.
        NotImplementedError: for placements that cannot be brought to the parameter's.
    """
    for member in members:
        grad, layout = member.param.grad, member.layout
        if type(grad) is Tensor and layout.mesh is None and grad.layout is torch.strided:
            member.grad = grad
        elif layout.mesh is not None and is_dtensor(grad) and _lies_so(grad._spec, layout):
            part = grad._local_tensor
            member.grad = part if type(part) is Tensor else _arrived(part)
        else:
            member.grad = _local_gradient(member, owner)


def _lies_so(spec: "DTensorSpec", layout: Layout) -> bool:
    return spec.mesh is layout.mesh and spec.placements == layout.placements


def _local_gradient(member: Member, owner: str) -> Tensor | None:
    param, grad = member.param, member.param.grad
    if grad is None:
        return torch.zeros_like(local(param)) if member.averages and param.requires_grad else None
    where = f"{owner}: parameter {member.name!r}"
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
