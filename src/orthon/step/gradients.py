"""This rank's part of the gradient of each parameter, brought to how the parameter lies."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

from orthon.sharding import local
from orthon.step.member import Member


def take_gradients(members: Iterable[Member], owner: str) -> None:
    """Give each member the gradient that its parameter has now.

    Raises:
        TypeError: for a sparse gradient, or one that is a DTensor while the parameter is not.
        NotImplementedError: for placements that cannot be brought to the parameter's.
    """
    for member in members:
        grad = member.param.grad
        if type(grad) is Tensor and member.layout.mesh is None and grad.layout is torch.strided:
            member.grad = grad
        elif type(grad) is DTensor and grad._spec.mesh is member.layout.mesh and _lies_alike(grad, member):
            member.grad = _arrived(grad._local_tensor)
        else:
            member.grad = _local_gradient(member, owner)


def _lies_alike(grad: DTensor, member: Member) -> bool:
    return grad._spec.placements == member.layout.placements and grad.layout is torch.strided


def _local_gradient(member: Member, owner: str) -> Tensor | None:
    param, grad = member.param, member.param.grad
    if grad is None:
        return torch.zeros_like(local(param)) if member.averages and param.requires_grad else None
    where = f"{owner}: parameter {member.name!r}"
    if grad.layout != torch.strided:
        raise TypeError(
            f"{where}: its gradient should be dense, but is {grad.layout}; build the layer with sparse=False"
        )
    if isinstance(param, DTensor) != isinstance(grad, DTensor):
        raise TypeError(f"{where}: should be a DTensor if and only if its gradient is one, but that is {type(grad)}")
    if isinstance(grad, DTensor):
        assert isinstance(param, DTensor)
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
