"""Parameters put into batches, and each batch given to its rule."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch, Buffers
from orthon.algorithms.state import Entry, factor_key, matrix_name
from orthon.sharding import Layout, Ranks, Share, Stack, Step, deal, local, relocated
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member

# One batch holds at most this many bytes of gradients, or a single parameter, and so few that its update takes at most
# twice as many bytes for what it makes and does not keep.
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """What one batch has of a parameter: all of it, or some of its matrices.

    Attributes:
        member: the parameter, which has a gradient.
        stack: the matrices, for a rule that takes them.
    """

    member: Member
    stack: Stack | None = None

    @cached_property
    def layout(self) -> Layout:
        """How the parameter lies, or each of the matrices."""
        return self.member.layout if self.stack is None else self.stack.layout

    @cached_property
    def is_plain(self) -> bool:
        """Whether it is the parameter as it lies in memory."""
        return self.stack is None or cast(Any, self.member.matrices).is_plain

    @property
    def compressed(self) -> bool:
        """Whether the rule averages over the replicas with less than the gradient."""
        return self.stack is not None and self.member.compresses(self.stack)

    @property
    def count(self) -> int:
        """How many matrices there are, or 1."""
        return 1 if self.stack is None else len(self.stack.numbers)


@dataclass(frozen=True)
class Work:
    """Parameters, or matrices of some, that a rule updates together.

    Attributes:
        parts: of the batch.
        owners: for each matrix who works on the whole of it, for a rule that gives each to one of the ranks.
        buffers: where the batch keeps its state.
    """

    parts: list[Part]
    owners: list[int] | None = None
    buffers: Buffers = field(default_factory=dict)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Which ranks communicate about it."""
        first = self.parts[0]
        return (first.layout.replicas if first.stack is None else first.layout.everyone).ranks

    @property
    def kind(self) -> tuple[int, int]:
        """What batches that make the same collectives have in common."""
        return id(self.parts[0].layout), id(self.parts[0].member.group)


class Plan:
    """The batches of a step, made anew only when other parameters have gradients, or gradients of another kind."""

    def __init__(self) -> None:
        self._members: Sequence[Member] = ()
        self._kinds: list[Any] = []
        self._sets: list[list[Work]] = []

    def __call__(self, everything: Sequence[Member]) -> list[list[Work]]:
        """Return the batches in sets that the same ranks communicate about, in an order on which all ranks agree.

        Args:
            everything: the same list as in the step before if their gradients alone may have changed.
        """
        kinds = [
            member.grad if member.grad is None else (member.grad.dtype, member.grad.device) for member in everything
        ]
        if everything is not self._members or kinds != self._kinds:
            self._members, self._kinds = everything, kinds
            self._sets = _by_ranks(batches(everything))
        return self._sets


def batches(everything: Iterable[Member]) -> list[Work]:
    """Return the parameters that have gradients in batches for the rules, the same on every rank."""
    alike: defaultdict[tuple[Any, ...], list[Part]] = defaultdict(list)
    for member in everything:
        if member.grad is None:
            continue
        param = member.param
        kind = id(member.group), param.dtype, member.grad.dtype, member.grad.device
        if member.matrices is None:
            # What is not a matrix may have any shape, and lie anywhere.
            alike[(*kind, member.layout.replicas.ranks)].append(Part(member))
            continue
        for stack in member.matrices.stacks:
            # Several matrices of one parameter are a batch: their state is in one tensor, and stays there.
            together = id(param) if len(stack.numbers) > 1 else None
            if stack.numbers:
                alike[(*kind, id(stack.layout), together)].append(Part(member, stack))
    parts = [part for together in alike.values() for part in _capped(together)]
    # Alone, a rank has nothing to deal out.
    shared = [i for i, part in enumerate(parts) if part[0].layout.everyone.size > 1]
    whole = [i for i in shared if parts[i][0].member.rule.cost is not None]
    dealt = dict(zip(whole, deal([_share(parts[i]) for i in whole]), strict=True))
    return [Work(part, dealt.get(i)) for i, part in enumerate(parts)]


def _by_ranks(everything: Iterable[Work]) -> list[list[Work]]:
    sets: defaultdict[tuple[int, ...], list[Work]] = defaultdict(list)
    for work in everything:
        sets[work.ranks].append(work)
    return [sets[ranks] for ranks in sorted(sets, key=lambda ranks: (len(ranks), ranks))]


def _capped(together: list[Part]) -> Iterator[list[Part]]:
    first = together[0]
    rule, dtype = first.member.rule, first.member.param.dtype
    if rule.temporaries is None:  # of any shapes
        batch, size = [first], _bytes(first.layout, dtype)
        for part in together[1:]:
            more = _bytes(part.layout, dtype)
            if size + more > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(part)
            size += more
        yield batch
        return
    taken = rule.temporaries(first.layout, first.member.group, dtype)
    each = first.count * max(_bytes(first.layout, dtype), taken / 2)
    count = -(-len(together) // max(1, int(_BATCH_BYTES / max(1.0, each))))
    for i in range(count):  # as many in each as can be
        yield together[i * len(together) // count : (i + 1) * len(together) // count]


def _bytes(layout: Layout, dtype: torch.dtype) -> int:
    """Return the bytes of the largest part that a rank has."""
    return math.prod(layout.largest) * dtype.itemsize


def _share(parts: list[Part]) -> Share:
    rule, group, layout = parts[0].member.rule, parts[0].member.group, parts[0].layout
    assert rule.cost is not None
    assert rule.route is not None
    count = sum(part.count for part in parts)
    return Share(layout, count, rule.cost(layout.shape, group), rule.route(layout, count, group) == "shards")


def make_states(work: Work, states: MutableMapping[Tensor, dict[str, Any]]) -> None:
    """Make the state of the parameters of a batch that have none yet.

    Zeros that lie as the parameters do get one storage for all of them, as `Batch.stacked` would move them to.
    """
    new = [part for part in work.parts if not states[part.member.param]]
    given: list[dict[str, Tensor]] = [{} for _ in new]
    if new and all(
        part.stack is not None and part.is_plain and local(part.member.param).is_contiguous() for part in new
    ):
        first, stack = new[0].member, cast(Stack, new[0].stack)
        for key, entry in first.entries[stack].items():
            if isinstance(entry, Entry) and entry.side is None:
                like = local(first.param)
                whole = torch.zeros(
                    len(new), *first.layout.part_shape, dtype=entry.dtype or like.dtype, device=like.device
                )
                for part, own, zeros in zip(new, given, whole.unbind(), strict=True):
                    own[key] = relocated(part.member.param, zeros)
    for part, own in zip(new, given, strict=True):
        states[part.member.param].update(part.member.new_state(own))


def update(
    work: Work,
    states: MutableMapping[Tensor, dict[str, Any]],
    gates: Mapping[torch.device, Tensor],
    scale: LossScale,
) -> Step[None]:
    """Update one batch of parameters.

    Args:
        work: one of `batches`.
        states: of all parameters.
        gates: for each device a tensor that is 1, or 0 to leave everything as it is; empty if none is to be left.
        scale: of the loss, and so of the gradients.
    """
    names, weights, grads, state, opened = [], [], [], [], []
    for part in work.parts:
        member, own = part.member, states[part.member.param]
        weight, grad = member.param, cast(Tensor, member.grad)
        if member.layout.mesh is not None:
            weight, grad = member.layout.fit(local(weight)), member.layout.fit(grad)
        if part.is_plain:
            names.append(member.name)
            weights.append(weight)
            grads.append(grad)
            state.append(own)
        else:
            viewed = _Viewed(part, weight, own)
            names += viewed.names
            weights += viewed.weights
            grads += viewed.open(grad)
            state += viewed.states
            opened.append(viewed)
    grads = scale.unscaled(grads)  # replicas may differ in it
    first = work.parts[0]
    if first.member.averages and not first.compressed:
        grads = yield from _averaged(grads, first.layout.replicas)
    gate = gates.get(grads[0].device)
    if gate is not None:
        grads = [torch.where(gate > 0, grad, 0) for grad in grads]
    batch = Batch(
        names=names,
        weights=weights,
        grads=grads,
        state=state,
        layout=first.layout,
        owners=work.owners,
        unsynced=first.compressed,
        gate=gate,
        buffers=work.buffers,
    )
    yield from first.member.rule.update(batch, first.member.group)
    for viewed in opened:
        viewed.close()


class _Viewed:
    """The matrices that a parameter is read as: names, weights and state, one of each for every matrix.

    They are views of the parameter's own tensors. Where there is none (a convolution in channels_last), `close`
    writes the copies back; so it does with state that the batch has moved.
    """

    def __init__(self, part: Part, weight: Tensor, state: dict[str, Any]) -> None:
        member = part.member
        assert part.stack is not None
        assert member.matrices is not None
        stack, matrices = part.stack, member.matrices
        self._stack, self._matrices, self._weight = stack, matrices, weight
        self.names = [matrix_name(member.name, matrices, number) for number in stack.numbers]
        self._open_weight = matrices.open(weight, stack)
        self.weights = list(self._open_weight.unbind())
        self._open: dict[str, tuple[Tensor, Entry, Tensor]] = {}
        self.states = [dict[str, Any]() for _ in stack.numbers]
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
            self._open[key] = kept, entry, opened
            for each, of_matrix in zip(self.states, opened.unbind(), strict=True):
                each[key] = of_matrix

    def open(self, grad: Tensor) -> list[Tensor]:
        """Return this rank's part of the gradient as matrices."""
        return list(self._matrices.open(grad, self._stack).unbind())

    def close(self) -> None:
        """Bring what lies elsewhere back into the parameter and its state."""
        if not _shares(self._open_weight, self._weight):
            self._matrices.close(self._weight, self._stack, self._open_weight)
        for key, (kept, entry, opened) in self._open.items():
            moved = not _shares(self.states[0][key], opened)
            if not moved and _shares(opened, kept):
                continue
            whole = torch.stack([state[key] for state in self.states]) if moved else opened
            if entry.side is None:
                self._matrices.close(kept, self._stack, whole)
            else:
                self._matrices.close_factor(kept, entry.side, self._stack, whole)


def _shares(x: Tensor, y: Tensor) -> bool:
    return x.is_meta or x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _averaged(grads: list[Tensor], replicas: Ranks) -> Step[list[Tensor]]:
    """Return the means of gradients over replicas, by one sum."""
    whole = yield from replicas.sum(torch.cat([grad.flatten() for grad in grads]).div_(replicas.size))
    parts = torch.split(whole, [grad.numel() for grad in grads])
    return [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]
