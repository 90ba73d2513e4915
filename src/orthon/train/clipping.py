"""Gradient clipping that leaves orthonormalized matrices alone unless asked."""

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from orthon.train.optimizers import Optimizers


def clip_gradients(optimizers: Optimizers, limit: float, matrices_too: bool) -> Tensor:
    """Scale the gradients down to a norm of at most `limit` (0: no limit), and return the norm before that.

    The size of an orthonormal update does not depend on that of the gradient: clipping would merely give this
    step less weight in the momentum. So only the other parameters are clipped, by their own norm, unless
    `matrices_too`. The norm returned is that of all gradients.
    """
    matrices = [p for p in optimizers.matrices if p.grad is not None]
    others = [p for p in optimizers.others if p.grad is not None]
    norms = [get_total_norm([p.grad for p in part if p.grad is not None]) for part in (matrices, others)]
    total = (norms[0] ** 2 + norms[1] ** 2) ** 0.5
    if limit and matrices_too:
        clip_grads_with_norm_(matrices + others, limit, total)
    elif limit:
        clip_grads_with_norm_(others, limit, norms[1])
    return total
