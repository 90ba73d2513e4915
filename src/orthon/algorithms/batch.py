"""What a rule works on in one call: some parameters of a group, with their gradients and their state."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from operator import is_, itemgetter
from typing import Any, overload

import torch
from torch import Tensor

from orthon.algorithms.gate import Seal, gated
from orthon.algorithms.kept import Kept
from orthon.algorithms.options import Group
from orthon.algorithms.weights import descend_, descend_product_
from orthon.linalg.device import is_readable
from orthon.machines import MACHINES, Machine
from orthon.sharding import Layout, Owners, Side, Step, local, relocated

_FREELY = nullcontext()


@dataclass(frozen=True)
class Batch:
    """Parameters of one param group that a rule updates together. For a matrix rule, all have one shape (m, n).

    A rule reads `G`, `options` and what `kept` returns. It writes by verbs alone: `descend` and its kin for the
    weights, and the verbs of `Kept` for the state. The verbs know whether this step is to be left out, so that a rule
    need not. A rule that writes otherwise gets a RuntimeError where `nonfinite="skip"` asks for that; in a step this is
    looked for in the first weight and its state, and by `orthon.testing.check_rule` in all.

    Attributes:
        names: of the parameters, or of the matrices in them.
        options: the param group.
        layout: how each of the matrices lies on the ranks, for a matrix rule; how one of the parameters lies, for
            another.
        weights: X, this rank's shard of each parameter, (m, n) for a matrix rule. To be read only.
        grads: the gradients, one for each weight. All are finite.
        state: a dictionary for each weight.
        route: how matrices are worked on: "alone", "owners" or "shards", see `Work.routes`.
        owners: for each matrix which of the ranks `layout.everyone` works on the whole of it, or on shards which copy
            does; None where nobody does.
        turn: a number that differs between batches, so that not always the same ranks begin to divide work.
        of_matrices: whether the weights are matrices, all of one shape.
        unsynced: whether the gradients of the user's replicas differ, so that the rule has to average.
        gate: None, or a tensor on the device: 1, or 0 where this step is to be left out. It is in float64 where weights
            or state are, so that rates times the gate are as exact as those; else in float32.
        reads_transposed: whether rows and columns have changed places in all of the above, but for the layout.
        scale: the factor of lr that follows from the shape of the matrices, by the option "adjust_lr_fn".
        machine: on which the ranks run.
        memo: what has been found about this batch in the steps before and holds as long as the plan. It belongs to
            whoever makes the batch, and a transposed batch uses the same.
        seal: tells whether somebody else has written to weights or state; None where there is no gate.
    """

    names: list[str]
    options: Group
    layout: Layout
    weights: list[Tensor]
    grads: list[Tensor]
    state: list[dict[str, Any]]
    route: str = "alone"
    owners: list[int] | None = None
    turn: int = 0
    of_matrices: bool = True
    unsynced: bool = False
    gate: Tensor | None = None
    reads_transposed: bool = False
    scale: float = 1.0
    memo: dict[Any, Any] = field(kw_only=True)
    machine: Machine = MACHINES["cpu"]
    seal: Seal | None = None

    @property
    def G(self) -> list[Tensor]:  # noqa: N802
        """The gradients, one for each weight, with the sign that is to be descended: negated with "maximize"."""
        return list(torch._foreach_neg(self.grads)) if self.options["maximize"] else self.grads

    # How the matrices lie

    @property
    def seen_layout(self) -> Layout:
        """The layout, with rows and columns in the places that they have here."""
        return self.layout.transposed if self.reads_transposed else self.layout

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each whole matrix, as it is read here; for other rules that of the first parameter."""
        return self.layout.shape[::-1] if self.reads_transposed else self.layout.shape

    def rows(self, *, divide: bool) -> Side:
        """Return the rows as a side of the matrices. With `divide`, copies divide work that each would do."""
        return self.layout.side(int(self.reads_transposed), divide=divide, unsynced=self.unsynced)

    def cols(self, *, divide: bool) -> Side:
        """Return the columns as a side of the matrices. With `divide`, copies divide work that each would do."""
        return self.layout.side(1 - int(self.reads_transposed), divide=divide, unsynced=self.unsynced)

    def transposed(self) -> "Batch":
        """Return the batch of the transposed matrices, over the same storage."""
        return replace(
            self,
            weights=[X.mT for X in self.weights],
            grads=[G.mT for G in self.grads],
            reads_transposed=not self.reads_transposed,
        )

    def owned(self, layout: Layout) -> Owners:
        """Return the owners of the matrices, with the ways there and back for what lies as a layout says."""
        key = "owners", id(layout)
        if key not in self.memo:
            assert self.owners is not None
            self.memo[key] = layout, Owners(layout, self.owners, unsynced=self.unsynced)
        owners: Owners = self.memo[key][1]
        return owners

    def sum_along_rows(self, x: Tensor) -> Step[Tensor]:
        """Return the sum of `x` over the ranks that hold the other parts of these rows. May overwrite `x`."""
        return (yield from self.seen_layout.grid.along(self.seen_layout.cuts[1]).sum(x))

    def sum_along_cols(self, x: Tensor) -> Step[Tensor]:
        """Return the sum of `x` over the ranks that hold the other parts of these columns. May overwrite `x`."""
        return (yield from self.seen_layout.grid.along(self.seen_layout.cuts[0]).sum(x))

    def norms(self, x: Tensor) -> Step[Tensor]:
        """Return the Frobenius norm of each whole matrix, (b, 1, 1), of this rank's shards x (b, m, n)."""
        squares = yield from self.sum_along_rows(x.square().sum((-2, -1), keepdim=True))
        return (yield from self.sum_along_cols(squares)).sqrt()

    # The state

    def kept(self, key: str) -> Kept:
        """Return the state tensors named `key` with verbs to change them: this rank's shard of each, as it is stored.

        For a matrix rule the value is one tensor (b, ...), for another a list of tensors.
        """
        if key not in self.state[0]:
            raise ValueError(f"kept({key!r}): the rule keeps {', '.join(map(repr, self.state[0]))}, but not that")
        parts = [self.stacked(key)] if self.of_matrices else [local(state[key]) for state in self.state]
        return Kept(key, parts, gate=self.gate, writing=self.writing)

    def stacked(self, key: str) -> Tensor:
        """Return this rank's shards of the state tensors named `key` as one tensor (b, ...), over their own storage.

        They are moved into one storage where they do not lie in one yet: at the first step, after a state has been
        loaded, and where other parameters have gradients than before.
        """
        parts = list(map(itemgetter(key), self.state))
        known: tuple[list[Tensor], Tensor] | None = self.memo.get(key)
        if known is not None and len(known[0]) == len(parts) and all(map(is_, known[0], parts)):
            return known[1]
        with self.writing:
            whole = self._in_one_storage(key)
        self.memo[key] = list(map(itemgetter(key), self.state)), whole
        return whole

    def stacked_like_weights(self, key: str) -> Tensor:
        """Return the state tensors named `key`, which have the shape of the weights, as (b, m, n)."""
        whole = self.stacked(key)
        return whole.mT if self.reads_transposed else whole

    def _in_one_storage(self, key: str) -> Tensor:
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

    # The gate

    @overload
    def gated(self, x: Tensor) -> Tensor: ...

    @overload
    def gated(self, x: float | Tensor) -> float | Tensor: ...

    def gated(self, x: float | Tensor) -> float | Tensor:
        """Return `x`, or zeros where this step is to be left out, whatever `x` is then."""
        if self.gate is None:
            return x
        return gated(x, self.gate) if isinstance(x, Tensor) else x * self.gate

    def gated_mask(self, mask: Tensor) -> Tensor:
        """Return `mask`, or False where this step is to be left out."""
        return mask if self.gate is None else mask & (self.gate > 0)

    def check_finite(self, x: Tensor, key: str) -> None:
        """Raise an error if numbers that follow from the state show that it has infinities or NaNs.

        The host looks only where it does not have to wait for that.

        Args:
            x: some numbers for each matrix, (b, k).
            key: of the state.
        """
        if is_readable(x) and not bool(x.isfinite().all()):
            bad = [name for name, own in zip(self.names, x.isfinite().all(-1).tolist(), strict=True) if not own]
            raise FloatingPointError(
                f"parameter {bad[0]!r}: its {key!r} has infinities or NaNs, or numbers so large that sums of them "
                "overflow; its weight is as before the step, that of other parameters may have changed; load a state "
                "from before"
            )

    @property
    def writing(self) -> AbstractContextManager[object]:
        """A block that writes to weights or state. It is up to the block that nothing changes where the gate is 0."""
        return _FREELY if self.seal is None else self.seal

    # The weights

    def rates(self, *, divided_by: float = 1.0) -> tuple[float | Tensor, float | Tensor]:
        """Return lr·scale and lr·weight_decay, or zeros where this step is to be left out.

        Both are numbers where the host knows them without waiting for a device.

        Args:
            divided_by: what `scale` is divided by.
        """
        lr = self.gated(scalar(self.options["lr"]))
        return lr * (self.scale / divided_by), lr * scalar(self.options["weight_decay"])

    def descend(self, updates: Tensor | Sequence[Tensor]) -> None:
        """Make the step: X ← (1 − lr·weight_decay)·X − lr·scale·update, with the rates of `rates`.

        With the option "cautious_weight_decay" only those entries decay that the update does not make larger (arXiv
        2510.12402).

        Args:
            updates: one for each weight, of its shape: (b, m, n) or a sequence, in any floating dtype.
        """
        _check_shapes(updates, self.weights)
        if isinstance(updates, Tensor):
            each: Sequence[Tensor] = self.gated(updates).unbind()
        else:
            each = updates if self.gate is None else [self.gated(update) for update in updates]
        by, rate = self.rates()
        cautious = self.options["cautious_weight_decay"]
        with self.writing:
            descend_(self.weights, each, rate=rate, by=by, cautious=cautious, alike=self.of_matrices)

    def descend_product(
        self,
        P: Tensor,
        Q: Tensor,
        *,
        rest: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        always_finite: bool = False,
    ) -> None:
        """Make the step with a product of low rank: X ← (1 − lr·weight_decay)·X − lr·scale·P Qᵀ, as `descend` does.

        Args:
            P: (b, m, r).
            Q: (b, n, r).
            rest: N (b, m, n) and c (b, 1, n), to subtract lr·scale·N diag(c) as well.
            dtype: in which the product is computed; None for that of the weights.
            always_finite: whether all of these are finite also in a step that is left out, where gradients are zero.
        """
        m, n = self.weights[0].shape
        if P.shape[:2] != (len(self.weights), m) or Q.shape != (len(self.weights), n, P.shape[-1]):
            raise ValueError(
                f"batch.descend_product: P should have the shape ({len(self.weights)}, {m}, r) and Q the shape "
                f"({len(self.weights)}, {n}, r), but they have {tuple(P.shape)} and {tuple(Q.shape)}"
            )
        by, rate = self.rates()
        if not always_finite:
            P, Q, rest = self.gated(P), self.gated(Q), rest and (self.gated(rest[0]), self.gated(rest[1]))
        cautious = self.options["cautious_weight_decay"]
        with self.writing:
            descend_product_(self.weights, P, Q, rate=rate, by=by, cautious=cautious, dtype=dtype, rest=rest)


def _check_shapes(updates: Tensor | Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Raise a ValueError for updates that are not one for each weight, of its shape."""
    if isinstance(updates, Tensor):
        needed, found = [(len(weights), *weights[0].shape)], [tuple(updates.shape)]
    else:
        needed, found = [tuple(X.shape) for X in weights], [tuple(update.shape) for update in updates]
    if needed != found:
        raise ValueError(f"batch.descend: updates should have the shapes {needed} of the weights, but have {found}")


def scalar(value: float | Tensor) -> float | Tensor:
    """Return a number or a one-element tensor as a number where the host can read it, else as a tensor without dims."""
    if not isinstance(value, Tensor):
        return value
    return float(value) if is_readable(value) else value.reshape(())
