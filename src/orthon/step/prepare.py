"""What has to be there before the batches of a plan are updated for the first time: their state."""

from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms import Entry
from orthon.sharding import local, relocated
from orthon.step.batches import PlannedBatch
from orthon.step.counter import counter
from orthon.step.member import Member


def make_states(
    planned: Iterable[PlannedBatch], members: Iterable[Member], states: MutableMapping[Tensor, dict[str, Any]]
) -> None:
    """Make the state of all parameters with gradients that have none yet, or lack a counter. Counters become float32.

    Zeros that lie as the parameters do get one storage for each batch, as `Batch.stacked` would move them to.

    Args:
        planned: the batches.
        members: all parameters.
        states: of all parameters.
    """
    for batch in planned:
        new = list(dict.fromkeys(piece.member for piece in batch.pieces if not states[piece.member.param]))
        for member, given in zip(new, _in_one_storage(batch, new), strict=True):
            states[member.param].update(member.new_state(given))
    for member in members:
        if member.grad is None:
            continue
        state = states[member.param]
        if not state:  # this rank has none of its matrices
            state.update(member.new_state())
        for key in member.counted:
            if key not in state:  # where the group did not ask for it before
                state[key] = member.new_state()[key]
        for key in member.counters:
            if key in state:  # which somebody else may have written
                state[key] = counter(state[key], f"parameter {member.name!r}: {key!r}")


def _in_one_storage(batch: PlannedBatch, new: Sequence[Member]) -> list[dict[str, Tensor]]:
    """Return for each new parameter of a batch the zeros that are parts of one tensor for all of them."""
    given: list[dict[str, Tensor]] = [{} for _ in new]
    if not new or not batch.is_plain or not all(local(member.param).is_contiguous() for member in new):
        return given
    first, stack = new[0], batch.pieces[0].stack
    if stack is None:
        return given
    for key, entry in first.entries[stack].items():
        if isinstance(entry, Entry) and entry.side is None:
            like = local(first.param)
            shape = len(new), *first.layout.shard_shape
            whole = torch.zeros(shape, dtype=entry.dtype or like.dtype, device=like.device)
            for member, own, zeros in zip(new, given, whole.unbind(), strict=True):
                own[key] = relocated(member.param, zeros)
    return given
