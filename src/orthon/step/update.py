"""One planned batch given to its rule: gradients, weights and state as matrices, and what is written back."""

from collections.abc import Mapping, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor

from orthon.algorithms import Batch, Entry
from orthon.algorithms.gate import Seal, gated
from orthon.sharding import Ranks, Step, local
from orthon.step.batches import Piece, PlannedBatch
from orthon.step.loss_scale import LossScale
from orthon.step.state import factor_key, matrix_name


def update(
    planned: PlannedBatch,
    states: MutableMapping[Tensor, dict[str, Any]],
    gates: Mapping[torch.device, Tensor],
    scale: LossScale,
) -> Step[None]:
    """Update one batch of parameters.

    Args:
        planned: the batch, as planned.
        states: of all parameters.
        gates: for each device a tensor that is 1, or 0 to leave everything as it is; empty if none is to be left.
        scale: of the loss, and so of the gradients.
    """
    first = planned.pieces[0]
    rule, options, layout = first.member.rule, first.member.group, first.layout
    opened = _Opened(planned, states)
    grads = opened.grads if scale.divisor is None else scale.unscaled(opened.grads)  # replicas may differ in it
    if first.member.averages and not first.compressed:
        grads = yield from _averaged(grads, layout.replicas)
    gate = gates.get(grads[0].device)
    if gate is not None:
        grads = [gated(grad, gate) for grad in grads]
        if torch.float64 in (opened.weights[0].dtype, *(value.dtype for value in opened.states[0].values())):
            gate = gate.double()  # rates are multiplied by it
    batch = Batch(
        names=opened.names,
        options=options,
        layout=layout,
        weights=opened.weights,
        grads=grads,
        state=opened.states,
        route=planned.route,
        owners=planned.owners,
        turn=planned.turn,
        machine=planned.machine,
        of_matrices=planned.of_matrices,
        unsynced=first.compressed,
        gate=gate,
        scale=planned.scale,
        memo=planned.memo,
        seal=None if gate is None else Seal(opened.weights[0], opened.states[0], rule.name),
    )
    steps = rule.update(batch)
    if steps is not None:
        yield from steps if batch.seal is None else _watched(steps, batch.seal)
    if batch.seal is not None:
        batch.seal.check()
    opened.close()


def _watched(steps: Step[None], seal: Seal) -> Step[None]:
    """Go through the steps of a rule. Other batches may write to the same parameters while it pauses."""
    answer: Any = None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration:
            return
        seal.check()
        answer = yield request
        seal.renew()


class _Opened:
    """The names, weights, gradients and states of a batch: of parameters as they lie, or of the matrices in them."""

    def __init__(self, planned: PlannedBatch, states: MutableMapping[Tensor, dict[str, Any]]) -> None:
        self._views: list[_Viewed] = []
        self.names: list[str] = []
        self.weights: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.states: list[dict[str, Any]] = []
        for piece in planned.pieces:
            member = piece.member
            weight, grad, state = member.param, cast(Tensor, member.grad), states[member.param]
            if member.layout.mesh is not None:
                weight, grad = member.layout.fit(local(weight)), member.layout.fit(grad)
            if planned.is_plain:
                self.names.append(member.seed_name)
                self.weights.append(weight)
                self.grads.append(grad)
                self.states.append(state)
                continue
            view = _Viewed(piece, weight, state)
            self._views.append(view)
            self.names += view.names
            self.weights += view.weights
            self.grads += view.open(grad)
            self.states += view.states

    def close(self) -> None:
        """Bring what lies elsewhere back into the parameters and their state."""
        for view in self._views:
            view.close()


class _Viewed:
    """The matrices that a parameter is read as: names, weights and state, one of each for every matrix.

    They are views of the parameter's own tensors. Where there is none (a convolution in channels_last), `close`
    writes the copies back. So it does with state that the batch has moved.
    """

    def __init__(self, piece: Piece, weight: Tensor, state: dict[str, Any]) -> None:
        member = piece.member
        assert piece.stack is not None
        assert member.matrices is not None
        stack, matrices = piece.stack, member.matrices
        self._stack, self._matrices, self._weight, self._places = stack, matrices, weight, piece.places
        self.names = [matrix_name(member.seed_name, matrices, number) for number in stack.numbers[self._places]]
        self._open_weight = matrices.open(weight, stack)[self._places]
        self.weights = list(self._open_weight.unbind())
        self._open: dict[str, tuple[Tensor, Entry, Tensor]] = {}
        self.states = [dict[str, Any]() for _ in self.names]
        of_stacks = member.entries
        for key, entry in of_stacks[stack].items():
            if not isinstance(entry, Entry):
                for each in self.states:
                    each[key] = state[key]
                continue
            if entry.side is None:
                kept = local(state[key])
                opened = matrices.open(kept, stack)
            else:
                kept = local(state[factor_key(key, entry, matrices, stack, of_stacks.values())[0]])
                opened = matrices.open_factor(kept, entry.side, stack)
            opened = opened[self._places]
            self._open[key] = kept, entry, opened
            for each, of_matrix in zip(self.states, opened.unbind(), strict=True):
                each[key] = of_matrix

    def open(self, grad: Tensor) -> list[Tensor]:
        """Return this rank's shard of the gradient as matrices."""
        return list(self._matrices.open(grad, self._stack)[self._places].unbind())

    def close(self) -> None:
        """Bring what lies elsewhere back into the parameter and its state."""
        stack, matrices = self._stack, self._matrices
        if not _shares(self._open_weight, self._weight):
            now = matrices.open(self._weight, stack)  # others may have changed other matrices of it
            now[self._places] = self._open_weight
            matrices.close(self._weight, stack, now)
        for key, (kept, entry, opened) in self._open.items():
            moved = not _shares(self.states[0][key], opened)
            if not moved and _shares(opened, kept):
                continue
            now = matrices.open(kept, stack) if entry.side is None else matrices.open_factor(kept, entry.side, stack)
            now[self._places] = torch.stack([state[key] for state in self.states]) if moved else opened
            if _shares(now, kept):
                continue
            if entry.side is None:
                matrices.close(kept, stack, now)
            else:
                matrices.close_factor(kept, entry.side, stack, now)


def _shares(x: Tensor, y: Tensor) -> bool:
    return x.is_meta or x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _averaged(grads: list[Tensor], replicas: Ranks) -> Step[list[Tensor]]:
    """Return the means of gradients over replicas, by one sum."""
    whole = yield from replicas.sum(torch.cat([grad.flatten() for grad in grads]).div_(replicas.size))
    parts = torch.split(whole, [grad.numel() for grad in grads])
    return [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]
