"""What one call of a rule updates: parameters with their gradients and state."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from orthon.algorithms.options import Group
from orthon.linalg import in_cache
from orthon.linalg.device import device_type, is_readable
from orthon.linalg.kernels import SMALL, subtract_product_
from orthon.sharding import Layout, Side, local, relocated

# Weights of this many numbers or more are updated by one fused product each; smaller ones share launches.
LARGE = 1 << 16


# By key, the state tensors of a batch and the one tensor that they are parts of.
Buffers = dict[str, tuple[list[Tensor], Tensor]]


@dataclass(frozen=True)
class Batch:
    """Parameters of one param group that a rule updates together; for a matrix rule, all of one shape.

    Attributes:
        names: of the parameters.
        weights: this rank's part of the parameters, their own storage; for a matrix rule each is (m, n).
        grads: one for each weight, finite.
        state: one dictionary for each weight.
        layout: of each of the matrices for a matrix rule, of one of the parameters for another.
        owners: for each matrix which of the ranks that hold parts of it, `layout.everyone`, owns it in this step, for
            a rule that works on whole ones.
        unsynced: whether the gradients of the user's replicas differ, so that the rule has to average.
        gate: None, or a tensor on the device that is 1, or 0 to leave weights and state as they are.
        reads_transposed: whether rows and columns have changed places in the above, but for the layout.
        buffers: what `stacked` has found in the steps before.
    """

    names: list[str]
    weights: list[Tensor]
    grads: list[Tensor]
    state: list[dict[str, Any]]
    layout: Layout
    owners: list[int] | None = None
    unsynced: bool = False
    gate: Tensor | None = None
    reads_transposed: bool = False
    buffers: Buffers = field(default_factory=dict)

    def rows(self, *, share: bool) -> Side:
        """Return the rows as a side of the matrices; `share` divides work that copies would repeat."""
        return self.layout.side(int(self.reads_transposed), share=share, unsynced=self.unsynced)

    def cols(self, *, share: bool) -> Side:
        """Return the columns as a side of the matrices; `share` divides work that copies would repeat."""
        return self.layout.side(1 - int(self.reads_transposed), share=share, unsynced=self.unsynced)

    def transposed(self) -> "Batch":
        """Return the batch of the transposed matrices, over the same storage."""
        return replace(
            self,
            weights=[X.mT for X in self.weights],
            grads=[G.mT for G in self.grads],
            reads_transposed=not self.reads_transposed,
        )

    def stacked(self, key: str) -> Tensor:
        """Return this rank's part of the state tensors named `key` as one tensor (b, ...) over their own storage.

        They are moved into a common storage when they do not lie in one already: at the first step, after
        loading a state, or when other parameters than before have gradients.
        """
        known = self.buffers.get(key)
        if known is not None and all(s[key] is part for s, part in zip(self.state, known[0], strict=True)):
            return known[1]
        whole = self._common_storage(key)
        self.buffers[key] = [state[key] for state in self.state], whole
        return whole

    def _common_storage(self, key: str) -> Tensor:
        parts = [local(state[key]) for state in self.state]
        first, stride = parts[0], parts[0].stride()
        start, memory = first.storage_offset(), first.untyped_storage().data_ptr()
        step = parts[1].storage_offset() - start if len(parts) > 1 else first.numel()
        if step > 0 and all(
            part.storage_offset() == start + i * step
            and part.stride() == stride
            and part.untyped_storage().data_ptr() == memory
            for i, part in enumerate(parts)
        ):
            return torch.as_strided(first, (len(parts), *first.shape), (step, *stride))
        whole = torch.stack(parts)
        for state, part in zip(self.state, whole.unbind(), strict=True):
            state[key] = relocated(state[key], part)
        return whole

    def stacked_like_weights(self, key: str) -> Tensor:
        """Return the state tensors named `key`, which have the parameters' shape, as (b, m, n)."""
        whole = self.stacked(key)
        return whole.mT if self.reads_transposed else whole

    @overload
    def gated(self, x: Tensor) -> Tensor: ...

    @overload
    def gated(self, x: float | Tensor) -> float | Tensor: ...

    def gated(self, x: float | Tensor) -> float | Tensor:
        """Return `x`, or zero where this step is to leave everything as it is."""
        return x if self.gate is None else x * self.gate

    def rates(self, group: Group) -> tuple[float | Tensor, float | Tensor]:
        """Return lr and lr·weight_decay, or zeros where this step is to leave everything as it is.

        They are numbers where nothing is on an accelerator, which would have to be waited for.
        """
        lr = self.gated(scalar(group["lr"]))
        return lr, lr * scalar(group["weight_decay"])

    def gated_mask(self, mask: Tensor) -> Tensor:
        """Return `mask`, or False where this step is to leave everything as it is."""
        return mask if self.gate is None else mask & (self.gate > 0)

    @property
    def seen_layout(self) -> Layout:
        """The layout, with rows and columns in the places that they have here."""
        return self.layout.transposed if self.reads_transposed else self.layout

    def decay(self, rate: float | Tensor, *, cautious: Sequence[Tensor] | None = None) -> None:
        """Decay the weights: X ← (1 − rate)·X.

        Args:
            rate: lr·weight_decay.
            cautious: for each weight a direction that is about to be subtracted from it. Then only the entries decay
                that it does not make larger, where its sign is that of the weight or zero (arXiv 2510.12402).
        """
        if cautious is None:
            _decay_each(self.weights, rate)
            return
        for X, direction in zip(self.weights, cautious, strict=True):
            X.sub_(agreeing(X, direction).mul_(rate))

    def subtract(self, updates: Sequence[Tensor], by: float | Tensor) -> None:
        """Subtract a multiple of an update (m, n) from each weight."""
        if isinstance(by, Tensor):
            updates, by = torch._foreach_mul(list(updates), by), 1.0
        _subtract_each(self.weights, updates, by)

    def decay_and_subtract(
        self, updates: Sequence[Tensor], *, rate: float | Tensor, by: float | Tensor, cautious: bool
    ) -> None:
        """Decay the weights and subtract a multiple of an update (m, n) from each: X ← (1 − rate)·X − by·update.

        Args:
            updates: one for each weight, in any floating dtype.
            rate: lr·weight_decay.
            by: factor of the updates.
            cautious: see `decay`.
        """
        if cautious or isinstance(by, Tensor):
            self.decay(rate, cautious=updates if cautious else None)
            self.subtract(updates, by)
            return
        for X, update in in_cache(self.weights, updates):
            _decay_each(X, rate)
            _subtract_each(X, update, by)

    def decay_and_subtract_product(
        self,
        P: Tensor,
        Q: Tensor,
        *,
        rate: float | Tensor,
        by: float | Tensor,
        cautious: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Decay the weights and subtract a low-rank product from each: X ← (1 − rate)·X − by·P Qᵀ.

        Args:
            P: (b, m, r).
            Q: (b, n, r).
            rate: lr·weight_decay.
            by: factor of the product.
            cautious: see `decay`.
            dtype: in which the product is computed; that of the weights if there is none.
        """
        if not cautious and self.weights[0].numel() >= LARGE:
            subtract_product_(self.weights, P, Q, rate=rate, by=by, dtype=dtype)
            return
        if isinstance(by, Tensor):  # before Q is rounded
            Q, by = Q * by, 1.0
        dtype = dtype or self.weights[0].dtype
        updates = (P.to(dtype) @ Q.to(dtype).mT).unbind()
        self.decay_and_subtract(updates, rate=rate, by=by, cautious=cautious)


def _decay_each(weights: Sequence[Tensor], rate: float | Tensor) -> None:
    if isinstance(rate, Tensor) or device_type(weights[0].device) != "cpu" or weights[0].numel() >= SMALL:
        torch._foreach_mul_(list(weights), 1 - rate)
    elif rate:  # three times as fast as a product with a number, each of which torch makes a tensor of
        torch._foreach_add_(list(weights), list(weights), alpha=-rate)


def _subtract_each(weights: Sequence[Tensor], updates: Sequence[Tensor], by: float) -> None:
    if updates[0].dtype == weights[0].dtype:
        torch._foreach_sub_(list(weights), list(updates), alpha=by)
        return
    for X, update in zip(weights, updates, strict=True):
        X.sub_(update, alpha=by)


def scalar(value: float | Tensor) -> float | Tensor:
    """Return a number or a one-element tensor as a number where the host can read it, else as a tensor without dims."""
    if not isinstance(value, Tensor):
        return value
    return float(value) if is_readable(value) else value.reshape(())


def agreeing(X: Tensor, direction: Tensor) -> Tensor:
    """Return X where subtracting a direction does not make it larger, their signs being equal or one of them zero."""
    return torch.where(direction.sign() * X >= 0, X, 0)
