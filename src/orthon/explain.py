"""A table of what an optimizer does with each parameter."""

import re
from dataclasses import dataclass
from itertools import groupby

from orthon.algorithms import RULES
from orthon.lr_scale import lr_factor
from orthon.names import parameter_names
from orthon.optimizer import MixedOptimizer


@dataclass(frozen=True)
class Row:
    """What happens to one parameter.

    Attributes:
        parameter: its name.
        shape: its shape.
        rule: the algorithm that updates it.
        rank: of its update; None if that is not low.
        lr_factor: by which the group's lr is multiplied.
        state_bytes: of its state.
        group: the name of its param group.
        reason: why it is there.
    """

    parameter: str
    shape: tuple[int, ...]
    rule: str
    rank: int | None
    lr_factor: float
    state_bytes: int
    group: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What an optimizer does with each parameter; prints as a table.

    Parameters that differ in the numbers of their names alone, and in nothing else, share a printed line.
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        header = ("parameter", "shape", "rule", "rank", "lr factor", "state bytes", "why")
        # A key with the digits cut out: the layers of a stack fall together.
        alike: dict[tuple[object, ...], list[Row]] = {}
        for row in self.rows:
            pattern = re.sub(r"(?<![^.\[])\d+(?![^.\]])", "#", row.parameter)
            alike.setdefault((pattern, row.shape, row.rule, row.rank, row.lr_factor, row.reason), []).append(row)
        lines = [_cells(rows) for rows in alike.values()]
        widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
        right = {3, 4, 5}

        def text(cells: tuple[str, ...]) -> str:
            aligned = (
                c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join(aligned).rstrip()

        table = [text(header), "  ".join("─" * width for width in widths), *map(text, lines)]
        return "\n".join([*table, "", *self._totals()])

    def _totals(self) -> list[str]:
        totals = []
        for rule, rows in groupby(sorted(self.rows, key=lambda row: row.rule), key=lambda row: row.rule):
            mine = list(rows)
            numbers = sum(_numel(row.shape) for row in mine)
            state = sum(row.state_bytes for row in mine)
            totals.append(f"{rule}: {len(mine)} parameters, {numbers:,} numbers, {state:,} bytes of state")
        return totals


def explain(optimizer: MixedOptimizer) -> Explanation:
    """Return what an optimizer does with each parameter, and why; `print` shows it as a table.

    Raises:
        TypeError: for an optimizer that is not one of Orthon's.
    """
    if not isinstance(optimizer, MixedOptimizer):
        raise TypeError(f"explain: optimizer should be one of Orthon's, but is a {type(optimizer).__name__}")
    rows = []
    for index, group in enumerate(optimizer.param_groups):
        rule = RULES[group["algorithm"]]
        for name, param in zip(parameter_names(group, index), group["params"], strict=True):
            shape = tuple(param.shape)
            state = rule.new_state(name, param.to("meta"), group, optimizer._layouts(param))
            rows.append(
                Row(
                    parameter=name,
                    shape=shape,
                    rule=rule.name,
                    rank=rule.rank(shape, group) if rule.rank else None,
                    lr_factor=lr_factor(group["lr_scale"], *shape) if rule.for_matrices else 1.0,
                    state_bytes=sum(value.numel() * value.element_size() for value in state.values()),
                    group=group.get("name", str(index)),
                    reason=group.get("reason", "chosen by its param group"),
                )
            )
    return Explanation(tuple(rows))


def _cells(rows: list[Row]) -> tuple[str, ...]:
    first = rows[0]
    name = first.parameter if len(rows) == 1 else f"{_common_name([row.parameter for row in rows])} (×{len(rows)})"
    return (
        name,
        "×".join(map(str, first.shape)) or "scalar",
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


def _numel(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
