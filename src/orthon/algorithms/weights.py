"""How weights decay and have updates subtracted from them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg import IN_CACHE, in_cache
from orthon.linalg.kernels import SMALL, lies_by_columns, subtract_product_

# Weights of this many numbers or more are updated by one fused product each. Smaller ones share launches.
LARGE = 1 << 16


def descend_(
    weights: Sequence[Tensor],
    updates: Sequence[Tensor],
    *,
    rate: float | Tensor,
    by: float | Tensor,
    cautious: bool,
    alike: bool,
) -> None:
    """Decay the weights and subtract a multiple of an update from each: X ← (1 − rate)·X − by·update.

    Args:
        weights: of any shapes, or of one shape (m, n).
        updates: one for each weight, in any floating dtype.
        rate: lr·weight_decay.
        by: factor of the updates.
        cautious: whether only the entries decay that the update does not make larger (arXiv 2510.12402).
        alike: whether all weights are matrices of one shape.
    """
    if cautious or isinstance(by, Tensor) or not alike:
        decay_(weights, rate, cautious=updates if cautious else None)
        if isinstance(by, Tensor):
            updates, by = torch._foreach_mul(list(updates), by), 1.0
        _subtract_(weights, updates, by)
        return
    fit = len(weights) * weights[0].numel() <= IN_CACHE
    for X, update in [(weights, updates)] if fit else in_cache(weights, updates):
        decay_(X, rate)
        _subtract_(X, update, by)


def descend_product_(
    weights: Sequence[Tensor],
    P: Tensor,
    Q: Tensor,
    *,
    rate: float | Tensor,
    by: float | Tensor,
    cautious: bool,
    dtype: torch.dtype | None,
    rest: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Decay the weights and subtract a product of low rank from each: X ← (1 − rate)·X − by·P Qᵀ.

    With a rest (N, c), what is subtracted is by·(P Qᵀ + N diag(c)).

    Args:
        weights: each (m, n).
        P: (b, m, r).
        Q: (b, n, r).
        rate: lr·weight_decay.
        by: factor of the product.
        cautious: as for `descend_`.
        dtype: in which the product is computed; None for that of the weights.
        rest: N (b, m, n) in any floating dtype, and c (b, 1, n) in float32, or float64 for float64.
    """
    of_weights = weights[0].dtype
    in_one_sum = rest is None or of_weights.itemsize >= 4  # 16-bit weights are rounded once
    if not cautious and weights[0].numel() >= LARGE and in_one_sum:
        subtract_product_(weights, P, Q, rate=rate, by=by, dtype=dtype)
        if rest is not None:
            N, c = rest[0], rest[1] * by
            for X, part, factor in zip(weights, N.unbind(), c.unbind(), strict=True):
                X.addcmul_(part, factor, value=-1)
        return
    if isinstance(by, Tensor):  # before Q is rounded
        Q, rest, by = Q * by, rest and (rest[0], rest[1] * by), 1.0
    P, Q = P.to(dtype or of_weights), Q.to(dtype or of_weights)
    update = P @ Q.mT if rest is None else product_and_rest(P, Q, *rest)  # (b, m, n)
    descend_(weights, update.unbind(), rate=rate, by=by, cautious=cautious, alike=True)


def product_and_rest(P: Tensor, Q: Tensor, N: Tensor, c: Tensor) -> Tensor:
    """Return P Qᵀ + N diag(c), (b, m, n), in the dtype of P and Q.

    The sum lies in memory by columns if N does, so that it takes one pass through both.
    """
    by_columns = lies_by_columns(N)
    if by_columns:
        P, Q, N, c = Q, P, N.mT, c.mT
    # The range of float16 ends far below 1/‖column‖, and that of float32 where N is in float64.
    c = c.to(P.dtype) if N.dtype == P.dtype != torch.float16 else c
    update = (P @ Q.mT).addcmul_(N, c)
    return update.mT if by_columns else update


def decay_(weights: Sequence[Tensor], rate: float | Tensor, *, cautious: Sequence[Tensor] | None = None) -> None:
    """Decay the weights: X ← (1 − rate)·X.

    Args:
        weights: of any shapes.
        rate: lr·weight_decay.
        cautious: for each weight a direction that is about to be subtracted from it. Then only the entries decay whose
            sign is that of the direction, or where one of the two is zero.
    """
    if cautious is not None:
        for X, direction in zip(weights, cautious, strict=True):
            X.sub_(agreeing(X, direction).mul_(rate))
    elif isinstance(rate, Tensor) or weights[0].numel() >= SMALL:
        torch._foreach_mul_(list(weights), 1 - rate)
    elif rate:  # three times as fast as a product with a number, of which torch makes a tensor for each weight
        torch._foreach_add_(list(weights), list(weights), alpha=-rate)


def agreeing(X: Tensor, direction: Tensor) -> Tensor:
    """Return X where subtracting a direction does not make it larger: where signs are equal, or one of them zero."""
    return torch.where(direction.sign() * X >= 0, X, 0)


def _subtract_(weights: Sequence[Tensor], updates: Sequence[Tensor], by: float) -> None:
    if updates[0].dtype == weights[0].dtype:
        torch._foreach_sub_(list(weights), list(updates), alpha=by)
        return
    for X, update in zip(weights, updates, strict=True):
        X.sub_(update, alpha=by)
