"""A table of what an optimizer does with each parameter."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms.lr_scale import lr_factor
from orthon.explain.temporaries import Temporaries
from orthon.linalg.device import meta_stands_for
from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding import Message, local, on_meta, record_messages, run
from orthon.step.batches import PlannedBatch as Work
from orthon.step.batches import batches
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member
from orthon.step.plan import AT_ONCE
from orthon.step.update import update


@dataclass(frozen=True)
class Row:
    """What happens to one parameter.

    Attributes:
        parameter: its name.
        shape: its shape.
        matrices: how it is read as matrices, such as "32 of 128×4096"; "" for one plain matrix, and for what is none.
        rule: the algorithm that updates it.
        rank: of its update; None if that is not low. Of the largest where matrices differ.
        lr_factor: by which the group's lr is multiplied. Of the largest where matrices differ.
        state_bytes: of its state, on this rank.
        group: the name of its param group.
        reason: why it is there.
    """

    parameter: str
    shape: tuple[int, ...]
    matrices: str
    rule: str
    rank: int | None
    lr_factor: float
    state_bytes: int
    group: str
    reason: str


@dataclass(frozen=True)
class BatchRow:
    """What one batch of parameters, updated together, communicates and takes in a step.

    Attributes:
        parameters: their names.
        matrices: how many they are, or 0 for what is none.
        shape: of the first; of each matrix for a matrix rule.
        rule: the algorithm.
        layout: how they lie on the ranks.
        polar_route: how a rule for whole matrices works on them, "alone", by "owners" or on "shards"; "" for others.
        synchronization: of the gradients of the replicas: "compressed", "full", or "" where nothing is left to do.
        messages: the collectives, in their order.
        batch_bytes: of this rank's part of the gradients, in the dtype of the parameters.
        temporary_bytes: the most that this rank holds at a time beside weights, gradients and state. What kernels and
            collectives take inside themselves is not in it.
    """

    parameters: tuple[str, ...]
    matrices: int
    shape: tuple[int, ...]
    rule: str
    layout: str
    polar_route: str
    synchronization: str
    messages: tuple[Message, ...]
    batch_bytes: int
    temporary_bytes: int

    @property
    def bytes(self) -> float:
        """What this rank communicates; a reduce-scatter or an all-gather counts as half an all-reduce."""
        return sum(message.share * message.bytes for message in self.messages)


@dataclass(frozen=True)
class Explanation:
    """What an optimizer does with each parameter, and what a step communicates and takes; prints as tables.

    Parameters that differ in the numbers of their names alone, and in nothing else, share a printed line.

    Attributes:
        rows: one for each parameter.
        batches: one for each batch of parameters.
        temporary_bytes: at most so many does this rank hold at a time in a step beside weights, gradients and state:
            those of the largest batch, or of the largest that are under way together where ranks communicate. The first
            step, which makes the state, may take more.
    """

    rows: tuple[Row, ...]
    batches: tuple[BatchRow, ...] = ()
    temporary_bytes: int = 0

    def __str__(self) -> str:
        parts = [self._parameters()]
        if any(batch.messages for batch in self.batches):
            parts.append(self._communication())
        if self.batches:
            parts.append(self._memory())
        return "\n\n".join(parts)

    def _communication(self) -> str:
        header = ("parameters", "batches", "shape", "layout", "by", "synchronization", "collectives each", "bytes each")
        alike: dict[tuple[str, ...], list[BatchRow]] = {}
        for batch in self.batches:
            cells = (
                str(batch.matrices or len(batch.parameters)),
                "×".join(map(str, batch.shape)) if batch.matrices or len(batch.parameters) == 1 else "various",
                batch.layout,
                batch.polar_route,
                batch.synchronization,
                str(len(batch.messages)),
                f"{batch.bytes:,.0f}",
            )
            alike.setdefault(cells, []).append(batch)
        lines: list[tuple[str, ...]] = []
        for same, rows in alike.items():
            first = rows[0].parameters[0]
            more = sum(len(row.parameters) for row in rows) - 1
            name = f"{first} and {more} more" if more else first
            times = f"{len(rows)} × {same[0]}" if len(rows) > 1 else same[0]
            lines.append((name, times, *same[1:]))
        collectives = sum(len(batch.messages) for batch in self.batches)
        total = f"one step: {collectives} collectives, {sum(batch.bytes for batch in self.batches):,.0f} bytes"
        return "\n".join([*_table(header, lines, right={1, 6, 7}), "", total])

    def _memory(self) -> str:
        count = f"{len(self.batches)} batches" if len(self.batches) > 1 else "1 batch"
        most, largest = self.temporary_bytes, max(batch.batch_bytes for batch in self.batches)
        return (
            f"memory of a step beside weights, gradients and state: at most {_size(most)}, in {count} of at most "
            f"{_size(largest)} of gradients"
        )

    def _parameters(self) -> str:
        header = ("parameter", "shape", "matrices", "rule", "rank", "lr factor", "state bytes", "why")
        # A key with the digits cut out: the layers of a stack fall together.
        alike: dict[tuple[object, ...], list[Row]] = {}
        for row in self.rows:
            pattern = re.sub(r"(?<![^.\[])\d+(?![^.\]])", "#", row.parameter)
            alike.setdefault(
                (pattern, row.shape, row.matrices, row.rule, row.rank, row.lr_factor, row.reason), []
            ).append(row)
        lines = [_cells(rows) for rows in alike.values()]
        return "\n".join([*_table(header, lines, right={4, 5, 6}), "", *self._totals()])

    def _totals(self) -> list[str]:
        totals = []
        for rule, rows in groupby(sorted(self.rows, key=lambda row: row.rule), key=lambda row: row.rule):
            mine = list(rows)
            numbers = sum(_numel(row.shape) for row in mine)
            state = sum(row.state_bytes for row in mine)
            totals.append(f"{rule}: {len(mine)} parameters, {numbers:,} numbers, {state:,} bytes of state")
        return totals


@torch.no_grad()
def explain(optimizer: MixedOptimizer) -> Explanation:
    """Return what an optimizer does with each parameter, and why; `print` shows it as a table.

    It also tells the memory that a step takes, and on many ranks what it communicates. Nothing is computed or sent, but
    with `replicas` that no mesh of the parameters knows, all ranks must call it.

    Raises:
        TypeError: for an optimizer that is not one of Orthon's.
    """
    if not isinstance(optimizer, MixedOptimizer):
        raise TypeError(f"explain: optimizer should be one of Orthon's, but is a {type(optimizer).__name__}")
    groups = {id(group): _without_storage(group) for group in optimizer.param_groups}
    everything = [_on_meta(member, groups[id(member.group)]) for member in optimizer.members()]
    states: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for member in everything:
        states[member.param].update(member.new_state())
    rows: list[BatchRow] = []
    together: defaultdict[tuple[int, ...], list[BatchRow]] = defaultdict(list)
    known: dict[Hashable, tuple[tuple[Message, ...], int]] = {}
    for work in batches(everything):
        kind = _kind(work)
        if kind not in known:
            known[kind] = _tried(work, states, skips=optimizer.nonfinite == "skip")
        rows.append(_batch_row(work, *known[kind]))
        together[work.ranks].append(rows[-1])
    parameters = tuple(_row(member, states[member.param]) for member in everything)
    return Explanation(parameters, tuple(rows), max(map(_under_way, together.values()), default=0))


def _without_storage(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group for parameters on meta."""
    # Rates may be tensors on an accelerator, which go with none that has no storage. They change nothing here.
    rates = {"lr": 0.0, "weight_decay": 0.0}
    if "foreach" not in group or group["foreach"] is not None or group["fused"]:
        return {**group, **rates}
    # torch's own choice goes by the device, and costs memory.
    foreach = local(group["params"][0]).device.type != "cpu" and not isinstance(group["lr"], Tensor)
    return {**group, **rates, "foreach": foreach}


def _kind(work: Work) -> Hashable:
    """Return what batches have in common that communicate and take the same."""
    parts = [
        (id(part.stack), id(part.member.layout), part.member.param.dtype, local(part.member.param).stride())
        for part in work.pieces
    ]
    return work.kind, None if work.owners is None else tuple(work.owners), tuple(parts)


def _tried(
    work: Work, states: MutableMapping[Tensor, dict[str, Any]], *, skips: bool
) -> tuple[tuple[Message, ...], int]:
    """Update a batch on meta, and return the collectives and the most bytes of temporaries.

    Args:
        work: the batch.
        states: of all parameters.
        skips: whether the device decides if the step is left out.
    """
    meta = torch.device("meta")
    gates = {meta: torch.ones((), device=meta)} if skips else {}
    device = work.pieces[0].layout.device
    with meta_stands_for(device), record_messages() as messages, Temporaries() as temporaries:
        run([update(work, states, gates, LossScale())], at_once=1)
    return tuple(messages), temporaries.bytes


def _batch_row(work: Work, messages: tuple[Message, ...], temporary_bytes: int) -> BatchRow:
    first = work.pieces[0]
    member, layout = first.member, first.layout
    names = dict.fromkeys(part.member.name for part in work.pieces)
    count = sum(part.count for part in work.pieces)
    sizes = [part.count * math.prod(part.layout.part_shape) * part.member.param.element_size() for part in work.pieces]
    return BatchRow(
        parameters=tuple(names),
        matrices=count if first.stack else 0,
        shape=layout.shape,
        rule=member.rule.name,
        layout=str(layout),
        polar_route=member.rule.work.route(layout, count, member.group),
        synchronization=("compressed" if first.compressed else "full") if member.averages else "",
        messages=messages,
        batch_bytes=sum(sizes),
        temporary_bytes=temporary_bytes,
    )


def _under_way(rows: Sequence[BatchRow]) -> int:
    """Return the most temporary bytes of batches that the same ranks communicate about.

    Others begin while some wait for their collectives. Of those that have none, one at a time is under way.
    """
    waiting = sorted((row.temporary_bytes for row in rows if row.messages), reverse=True)[:AT_ONCE]
    alone = max((row.temporary_bytes for row in rows if not row.messages), default=0)
    return max(sum(waiting), alone + sum(waiting[: AT_ONCE - 1]))


def _on_meta(member: Member, group: dict[str, Any]) -> Member:
    """Return the parameter with a gradient, without any storage, in another group."""
    param = on_meta(member.param)
    return replace(member, param=param, grad=torch.empty_like(local(param)), group=group)


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
        rank=rule.work.rank(largest, group),
        lr_factor=lr_factor(group["lr_scale"], largest[0], largest[1]) if rule.work.takes_matrices else 1.0,
        state_bytes=sum(local(value).nbytes for value in state.values()),
        group=group.get("name", ""),
        reason=group.get("reason", "chosen by its param group"),
    )


def _table(header: tuple[str, ...], lines: Sequence[tuple[str, ...]], *, right: set[int]) -> list[str]:
    """Return aligned lines: the header, a rule, and the rest; columns in `right` are aligned there."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(cells: tuple[str, ...]) -> str:
        aligned = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(aligned).rstrip()

    return [text(header), "  ".join("─" * width for width in widths), *map(text, lines)]


def _cells(rows: list[Row]) -> tuple[str, ...]:
    first = rows[0]
    name = first.parameter if len(rows) == 1 else f"{_common_name([row.parameter for row in rows])} (×{len(rows)})"
    return (
        name,
        "×".join(map(str, first.shape)) or "scalar",
        first.matrices,
        first.rule,
        "" if first.rank is None else str(first.rank),
        f"{first.lr_factor:.4g}",
        f"{sum(row.state_bytes for row in rows):,}",
        first.reason,
    )


def _common_name(names: list[str]) -> str:
    """Return names that differ in numbers alone as one, with ranges: layers.0 and layers.1 → layers.{0-1}."""
    parts = []
    for column in zip(*(re.split(r"([.\[\]])", name) for name in names), strict=True):
        values = list(dict.fromkeys(column))
        parts.append(values[0] if len(values) == 1 else "{" + _ranges(sorted(map(int, values))) + "}")
    return "".join(parts)


def _ranges(values: list[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count:,} bytes"


def _numel(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
