"""The text of explanations: tables with aligned columns, in which what is alike shares a line."""

import math
import re
from collections.abc import Sequence
from itertools import groupby

from orthon.explain.aligned import table
from orthon.explain.rows import BatchRow, Row, WaveRow
from orthon.explain.shares import Share
from orthon.explain.units import amount, duration, operations, size


def parameter_table(rows: Sequence[Row]) -> str:
    """Return a line for each parameter, or for each set of parameters that are alike, and totals for each rule."""
    header = ("parameter", "shape", "matrices", "rule", "rank of update", "lr factor", "state", "why")
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        # Without their numbers, the names in all layers of a stack are the same.
        pattern = re.sub(r"(?<![^.\[])\d+(?![^.\]])", "#", row.parameter)
        key = (pattern, row.shape, row.matrices, row.rule, row.update_rank, row.has_tail, row.lr_factor, row.reason)
        alike.setdefault(key, []).append(row)
    lines = [_parameter_cells(same) for same in alike.values()]
    return "\n".join([*table(header, lines, right={4, 5, 6}), "", *_totals(rows)])


def communication_table(waves: Sequence[WaveRow]) -> str:
    """Return a line for each set of waves that are alike, with the mean of what they send, and the total of a step."""
    header = ("waves", "matrices", "shapes", "layout", "by", "synchronization", "collectives", "sent", "received")
    alike: dict[tuple[str, ...], list[WaveRow]] = {}
    for wave in waves:
        if wave.messages:
            alike.setdefault(_wave_cells(wave), []).append(wave)
    lines = []
    for cells, same in alike.items():
        means = [sum(wave.sent for wave in same) / len(same), sum(wave.received for wave in same) / len(same)]
        lines.append((str(len(same)), *cells, *map(size, means)))
    count = sum(len(wave.messages) for wave in waves)
    sent, received = sum(wave.sent for wave in waves), sum(wave.received for wave in waves)
    total = f"one step: {count} collectives, {size(sent)} sent and {size(received)} received by this rank"
    return "\n".join([*table(header, lines, right={0, 1, 6, 7, 8}), "", total])


def share_table(here: Share, most_work: Share, most_bytes: Share, machine: str) -> str:
    """Return what this rank does of a step, and what the busiest ones do, with the time that it takes."""
    header = ("rank", "", "products", "factorizations", "sent", "received", "work", "sending")
    kinds: dict[Share, list[str]] = {}
    for share, kind in ((here, "this one"), (most_work, "most work"), (most_bytes, "most bytes")):
        kinds.setdefault(share, []).append(kind)
    lines = [(str(share.rank), ", ".join(kind), *_share_cells(share)) for share, kind in kinds.items()]
    work = duration(max(share.working for share in kinds)) or "none"
    sending = duration(max(share.sending for share in kinds)) or "none"
    total = f"one step on {machine}: about {work} of work on the busiest rank, {sending} of sending"
    return "\n".join([*table(header, lines, right={0, 2, 3, 4, 5, 6, 7}), "", total])


def memory_line(batches: Sequence[BatchRow], temporary_bytes: int) -> str:
    """Return the memory of a step, in words."""
    count = f"{len(batches)} batches" if len(batches) > 1 else "1 batch"
    return (
        f"memory of a step beside weights, gradients and state: at most {size(temporary_bytes)}, in {count} of at "
        f"most {size(max(batch.batch_bytes for batch in batches))} of gradients"
    )


def _parameter_cells(rows: Sequence[Row]) -> tuple[str, ...]:
    first = rows[0]
    name = first.parameter if len(rows) == 1 else f"{_common_name([row.parameter for row in rows])} (×{len(rows)})"
    return (
        name,
        "×".join(map(str, first.shape)) or "scalar",
        first.matrices,
        first.rule,
        "" if first.update_rank is None else f"{first.update_rank}{' + tail' if first.has_tail else ''}",
        f"{first.lr_factor:.4g}",
        size(sum(row.state_bytes for row in rows)),
        first.reason,
    )


def _totals(rows: Sequence[Row]) -> list[str]:
    totals = []
    for rule, of_rule in groupby(sorted(rows, key=lambda row: row.rule), key=lambda row: row.rule):
        its = list(of_rule)
        numbers = sum(math.prod(row.shape) for row in its)
        state = sum(row.state_bytes for row in its)
        parameters = "1 parameter" if len(its) == 1 else f"{len(its)} parameters"
        totals.append(f"{rule}: {parameters}, {amount(numbers)} numbers, {size(state)} of state")
    return totals


def _wave_cells(wave: WaveRow) -> tuple[str, ...]:
    batches = wave.batches
    shapes = dict.fromkeys(
        "×".join(map(str, batch.shape)) if batch.matrices or len(batch.parameters) == 1 else "various"
        for batch in batches
    )
    return (
        str(sum(batch.matrices or len(batch.parameters) for batch in batches)),
        ", ".join(shapes),
        "; ".join(dict.fromkeys(batch.layout for batch in batches)),
        ", ".join(dict.fromkeys(batch.route for batch in batches if batch.route)),
        ", ".join(dict.fromkeys(batch.synchronization for batch in batches if batch.synchronization)),
        str(len(wave.messages)),
    )


def _share_cells(share: Share) -> tuple[str, ...]:
    return (
        operations(share.products),
        operations(share.factoring),
        size(share.sent),
        size(share.received),
        duration(share.working),
        duration(share.sending),
    )


def _common_name(names: Sequence[str]) -> str:
    """Return names that differ in numbers alone as one, with ranges: layers.0 and layers.1 → layers.{0-1}."""
    parts = []
    for column in zip(*(re.split(r"([.\[\]])", name) for name in names), strict=True):
        values = list(dict.fromkeys(column))
        parts.append(values[0] if len(values) == 1 else "{" + _ranges(sorted(map(int, values))) + "}")
    return "".join(parts)


def _ranges(values: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
