"""Gradient clipping that leaves orthonormalized matrices alone unless asked."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from orthon.sharding import local
from orthon.train.processes.ranks import Ranks
from orthon.train.step.optimizers import Optimizers


def clip_gradients(optimizers: Optimizers, limit: float, matrices_too: bool, ranks: Ranks) -> Tensor:
    """Scale the gradients down to a norm of at most `limit` (0: no limit), and return the norm before that.

    The size of an orthonormal update does not depend on that of the gradient: clipping would merely give this
    step less weight in the momentum. So only the other parameters are clipped, by their own norm, unless
    `matrices_too`. The norm returned is that of all gradients.

    Where the optimizer averages gradients over replicas, those of matrices count with their mean square over
    the replicas, since their average never exists as a whole; the others are averaged here.
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
    """The gradients that there are, each in the layout of its parameter."""
    grads = []
    for param in params:
        grad = param.grad
        # Tensor parallelism may leave a gradient whole or, as sums still to be added, partial.
        if isinstance(param, DTensor) and isinstance(grad, DTensor) and grad.placements != param.placements:
            param.grad = grad = grad.redistribute(param.device_mesh, param.placements)
        if grad is not None:
            grads.append(grad)
    return grads


def _norms(matrices: list[Tensor], others: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """The norm of each list, over all ranks."""
    if ranks.mesh is None:
        return [get_total_norm(part) for part in (matrices, others)]
    squares = torch.stack([_mean_square(part, ranks) for part in (matrices, others)])
    return list(ranks.sum_(squares).sqrt())


def _mean_square(grads: list[Tensor], ranks: Ranks) -> Tensor:
    """The sum of squares on this rank, each divided by the number of ranks that have the same numbers."""
    by_copies = defaultdict(list)
    for grad in grads:
        by_copies[_copies(grad, ranks.world)].append(local(grad))
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for copies, parts in by_copies.items():
        total += get_total_norm(parts).double() ** 2 / copies
    return total


def _copies(grad: Tensor, world: int) -> int:
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
    if grads:  # as torch.nn.utils.clip_grads_with_norm_, which does not take tensors of several meshes
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        torch._foreach_mul_([local(grad) for grad in grads], factor.float())
