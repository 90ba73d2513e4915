"""A step without numbers: on tensors of the device "meta", it tells what an optimizer would do, send and take."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms.lr_scale import lr_factor
from orthon.explain.explanation import Explanation
from orthon.explain.rows import BatchRow, Row, WaveRow
from orthon.explain.temporaries import Temporaries
from orthon.linalg.device import meta_stands_for
from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding import Message, local, on_meta, record_messages, run
from orthon.step.batches import PlannedBatch, Wave
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member
from orthon.step.plan import AT_ONCE
from orthon.step.update import update


@torch.no_grad()
def explain(optimizer: MixedOptimizer) -> Explanation:
    """Return what an optimizer does with each parameter, and why; `print` shows it as a table.

    It also tells how much memory a step takes, and what many processes communicate. Nothing is computed or sent, with
    one exception: with `replicas` that no mesh of the parameters knows, all of these processes must call it together.

    Raises:
        TypeError: for an optimizer that is not one of Orthon's.
    """
    if not isinstance(optimizer, MixedOptimizer):
        raise TypeError(f"explain: optimizer should be one of Orthon's, but is a {type(optimizer).__name__}")
    groups = {id(group): _without_storage(group) for group in optimizer.param_groups}
    members = [_on_meta(member, groups[id(member.group)]) for member in optimizer.members()]
    states: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for member in members:
        states[member.param].update(member.new_state())
    waves: list[WaveRow] = []
    most = 0
    tried: dict[Hashable, tuple[tuple[Message, ...], int]] = {}
    for together in optimizer.waves(members):
        rows = []
        for wave in together:
            kind = tuple(map(_kind, wave))
            if kind not in tried:
                tried[kind] = _try(wave, states, skips=optimizer.nonfinite == "skip")
            rows.append(WaveRow(tuple(map(_batch_row, wave)), *tried[kind]))
        waves += rows
        most = max(most, _under_way(rows))
    parameters = tuple(_row(member, states[member.param]) for member in members)
    return Explanation(parameters, tuple(waves), most)


def _without_storage(group: dict[str, Any]) -> dict[str, Any]:
    """Return a param group for parameters on meta."""
    # Rates may be tensors on an accelerator, which do not mix with tensors on meta. Their values change nothing here.
    rates = {"lr": 0.0, "weight_decay": 0.0}
    if "foreach" not in group or group["foreach"] is not None or group["fused"]:
        return {**group, **rates}
    # torch chooses `foreach` by the device, and it costs memory: choose as torch would for the true device.
    foreach = local(group["params"][0]).device.type != "cpu" and not isinstance(group["lr"], Tensor)
    return {**group, **rates, "foreach": foreach}


def _on_meta(member: Member, group: dict[str, Any]) -> Member:
    """Return the parameter in another group, with a gradient, and without any storage."""
    param = on_meta(member.param)
    return replace(member, param=param, grad=torch.empty_like(local(param)), group=group)


def _kind(batch: PlannedBatch) -> Hashable:
    """Return a key that is the same for batches that communicate and take the same."""
    pieces = [
        (id(piece.stack), id(piece.member.layout), piece.member.param.dtype, local(piece.member.param).stride())
        for piece in batch.pieces
    ]
    return batch.kind, None if batch.owners is None else tuple(batch.owners), tuple(pieces)


def _try(wave: Wave, states: MutableMapping[Tensor, dict[str, Any]], *, skips: bool) -> tuple[tuple[Message, ...], int]:
    """Update the batches of a wave on meta. Return the collectives, and the most bytes of temporaries at one time.

    Args:
        wave: the batches.
        states: of all parameters.
        skips: whether the device decides if the step is left out.
    """
    meta = torch.device("meta")
    gates = {meta: torch.ones((), device=meta)} if skips else {}
    device = wave[0].pieces[0].layout.device
    with meta_stands_for(device), record_messages() as messages, Temporaries() as temporaries:
        run([[update(batch, states, gates, LossScale()) for batch in wave]], at_once=1)
    return tuple(messages), temporaries.bytes


def _batch_row(batch: PlannedBatch) -> BatchRow:
    first = batch.pieces[0]
    member, layout = first.member, first.layout
    names = dict.fromkeys(piece.member.name for piece in batch.pieces)
    count = sum(piece.count for piece in batch.pieces)
    sizes = [
        piece.count * math.prod(piece.layout.shard_shape) * piece.member.param.element_size() for piece in batch.pieces
    ]
    return BatchRow(
        parameters=tuple(names),
        matrices=count if first.stack else 0,
        shape=layout.shape,
        rule=member.rule.name,
        layout=str(layout),
        route=batch.route if first.stack and len(batch.ranks) > 1 else "",
        synchronization=("compressed" if first.compressed else "full") if member.averages else "",
        batch_bytes=sum(sizes),
    )


def _under_way(rows: Sequence[WaveRow]) -> int:
    """Return the most temporary bytes at one time of the waves about which the same processes communicate.

    While some wait for their collectives, others begin. Of waves without collectives, one at a time is under way.
    """
    waiting = sorted((row.temporary_bytes for row in rows if row.messages), reverse=True)[:AT_ONCE]
    alone = max((row.temporary_bytes for row in rows if not row.messages), default=0)
    return max(sum(waiting), alone + sum(waiting[: AT_ONCE - 1]))


def _row(member: Member, state: Mapping[str, Tensor]) -> Row:
    group, rule = member.group, member.rule
    counts: Counter[tuple[int, ...]] = Counter()
    if member.matrices is not None:
        reading = member.matrices.reading
        for block in range(len(reading.blocks)):
            counts[reading.matrix(block)] += reading.count // len(reading.blocks)
    largest = max(counts, key=math.prod, default=(1, 1))
    plain = member.matrices is None or member.matrices.is_plain
    return Row(
        parameter=member.name,
        shape=member.layout.shape,
        matrices="" if plain else ", ".join(f"{count} of {'×'.join(map(str, s))}" for s, count in counts.items()),
        rule=rule.name,
        update_rank=rule.work.update_rank(largest, group) if member.matrices is not None else None,
        lr_factor=lr_factor(group["lr_scale"], largest[0], largest[1]) if rule.work.takes_matrices else 1.0,
        state_bytes=sum(local(value).nbytes for value in state.values()),
        group=group.get("name", ""),
        reason=group.get("reason", "chosen by its param group"),
    )
