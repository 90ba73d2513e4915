"""Gradient clipping, which leaves orthonormalized matrices alone by default."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from orthon.sharding import local
from orthon.train.processes.ranks import Processes
from orthon.train.step.optimizers import Optimizers


def clip_gradients(optimizers: Optimizers, limit: float, matrices_too: bool, ranks: Processes) -> Tensor:
    """Scale gradients down to a norm of at most `limit`, and return the norm of all gradients before that.

    By default only the parameters are clipped that are not orthonormalized matrices, by their own norm. The size of
    an orthonormal update does not depend on the size of the gradient: clipping it would only give this step less
    weight in the momentum.

    If the optimizer averages over replicas itself, the average of a matrix's gradient never exists as a whole. In the
    norm, its mean square over the replicas stands for it. The other gradients are averaged here.

    Args:
        optimizers: whose gradients to clip.
        limit: largest norm; 0 for no limit.
        matrices_too: clip the gradients of all parameters together.
        ranks: who takes part.
    """
    matrices = _gradients(optimizers.matrices)
    others = _gradients(optimizers.others)
    if limit and optimizers.unsynchronized is not None:
        _average(others, optimizers.unsynchronized)
    norms = _norms(matrices, others, ranks)
    total = (norms[0] ** 2 + norms[1] ** 2) ** 0.5
    if limit and matrices_too:
        _clip(matrices + others, limit, total)
    elif limit:
        _clip(others, limit, norms[1])
    return total


def _gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of those parameters that have one, each in the layout of its parameter."""
    grads = []
    for param in params:
        grad = param.grad
        # Tensor parallelism may leave a gradient whole, or partial: as terms of a sum, one on each rank.
        if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
            param.grad = grad = grad.redistribute(param.device_mesh, param.placements)
        if grad is not None:
            grads.append(grad)
    return grads


def _norms(matrices: list[Tensor], others: list[Tensor], ranks: Processes) -> list[Tensor]:
    """Return the norm of each list, over all ranks."""
    if ranks.mesh is None:
        return [get_total_norm(part) for part in (matrices, others)]
    squares = torch.stack([_mean_square(part, ranks) for part in (matrices, others)])
    return list(ranks.sum_(squares).sqrt())


def _mean_square(grads: list[Tensor], ranks: Processes) -> Tensor:
    """Return the sum of squares on this rank, each divided by the number of ranks that hold the same number."""
    by_copies = defaultdict(list)
    for grad in grads:
        by_copies[_copies(grad, ranks.world)].append(local(grad))
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for copies, parts in by_copies.items():
        total += get_total_norm(parts).double() ** 2 / copies
    return total


def _copies(grad: Tensor, world: int) -> int:
    """Return the number of ranks that hold the same part of a gradient."""
    if not isinstance(grad, DTensor):
        return world
    for axis, placement in enumerate(grad.placements):
        if not placement.is_replicate():
            world //= grad.device_mesh.size(axis)
    return world


def _average(grads: list[Tensor], group: dist.ProcessGroup) -> None:
    for grad in map(local, grads):
        dist.all_reduce(grad, group=group)
        grad /= group.size()


def _clip(grads: list[Tensor], limit: float, norm: Tensor) -> None:
    if grads:  # torch.nn.utils.clip_grads_with_norm_ does not take tensors of several meshes
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        torch._foreach_mul_([local(grad) for grad in grads], factor.float())
