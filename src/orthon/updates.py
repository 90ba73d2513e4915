"""Parameters put into batches, and each batch given to its rule."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor

from orthon.batch import Batch
from orthon.member import Member
from orthon.sharding import Ranks, Step, local

# One batch holds at most this many bytes of gradients, or of factors, or a single parameter: a step's temporaries
# grow with it.
_BATCH_BYTES = 64 << 20


def batches(everything: Iterable[Member]) -> Iterator[list[Member]]:
    """Yield the parameters that have gradients in batches for the rules, the same on every rank."""
    alike: defaultdict[tuple[Any, ...], list[Member]] = defaultdict(list)
    for member in everything:
        if member.grad is not None:
            param = member.param
            # What is not a matrix may have any shape, and lie anywhere.
            layout = id(member.layout) if member.rule.for_matrices else member.layout.replicas.ranks
            dtypes = param.dtype, member.grad.dtype, member.grad.device
            alike[id(member.group), layout, *dtypes].append(member)
    for together in alike.values():
        first, size = together[0], len(together)
        if first.rule.largest is not None:
            size = _BATCH_BYTES // (first.rule.largest(first.layout, first.group) * first.param.element_size())
        for start in range(0, len(together), max(1, size)):
            yield together[start : start + max(1, size)]


def update(
    part: list[Member], states: MutableMapping[Tensor, dict[str, Any]], gates: Mapping[torch.device, Tensor]
) -> Step[None]:
    """Update one batch of parameters, which all have gradients.

    Args:
        part: one of `batches`.
        states: of all parameters; what is missing is made.
        gates: for each device a tensor that is 1, or 0 to leave everything as it is; empty if none is to be left.
    """
    for member in part:
        if not states[member.param]:
            states[member.param].update(member.rule.new_state(member.name, member.param, member.group, member.layout))
    first = part[0]
    grads = [member.layout.fit(cast(Tensor, member.grad)) for member in part]
    if first.averages and not first.compressed:
        grads = yield from _averaged(grads, first.layout.replicas)
    gate = gates.get(grads[0].device)
    if gate is not None:
        grads = [torch.where(gate > 0, grad, 0) for grad in grads]
    batch = Batch(
        names=[member.name for member in part],
        weights=[member.layout.fit(local(member.param)) for member in part],
        grads=grads,
        state=[states[member.param] for member in part],
        layout=first.layout,
        unsynced=first.compressed,
        gate=gate,
    )
    yield from first.rule.update(batch, first.group)


def _averaged(grads: list[Tensor], replicas: Ranks) -> Step[list[Tensor]]:
    """Return the means of gradients over replicas, by one sum."""
    whole = yield from replicas.sum(torch.cat([grad.flatten() for grad in grads]).div_(replicas.size))
    parts = torch.split(whole, [grad.numel() for grad in grads])
    return [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]
