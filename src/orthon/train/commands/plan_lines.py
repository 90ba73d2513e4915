"""What a plan says in words: which optimizer to take, where one overtakes another, and what was assumed."""

import math
from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from orthon.explain.units import duration
from orthon.train.commands.planned import Found
from orthon.train.commands.training_step import TrainingStep

if TYPE_CHECKING:
    from orthon.plan.rows import PlanRow

# Of two times, as a part of them.
NEARLY = 0.02


def lines_below(found: Found, training: TrainingStep) -> list[str]:
    """Return the lines below the table."""
    asked = found.asked
    lines = [f"{_gpus(asked.ranks)} of {asked.machine.name}; times are estimates"]
    if training.assumed:
        lines.append(training.assumed)
    lines += _to_take(found)
    lines += crossovers({word: {n: row.seconds for n, row in rows.items()} for word, rows in found.by_ranks.items()})
    return lines


def _to_take(found: Found) -> list[str]:
    lines = []
    fitting = [row for row in found.asked.rows if row.fits]
    orthonormal = [row for row in fitting if row.optimizer not in ("adamw", "lion")]
    if orthonormal:
        best = min(orthonormal, key=lambda row: row.seconds)
        others = [row for row in fitting if row not in orthonormal]
        beside = "".join(f"; {row.optimizer} takes {duration(row.seconds)}" for row in others)
        lines.append(
            f"of the orthonormal updates, {best.optimizer} takes the least time: {duration(best.seconds)}{beside}"
        )
    for row in found.asked.rows:
        if not row.fits:
            lines.append(f"{row.optimizer} does not fit{_where(row, found)}")
    return lines


def _where(row: "PlanRow", found: Found) -> str:
    least = found.least.get(row.optimizer)
    if least is None:
        return ""
    ranks = min(found.by_ranks[row.optimizer])
    return f"; it does on {ranks:,} GPUs: --mesh.dp-shard {least}"


def crossovers(seconds: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Return where one optimizer overtakes another of a different rule, in words.

    Between two numbers of GPUs that were planned, times are taken to be straight lines where both axes are
    logarithmic. Numbers at which the two take nearly the same do not count.

    Args:
        seconds: of a step, by optimizer and number of GPUs.
    """
    lines = []
    for first, second in combinations(seconds, 2):
        if first.partition(":")[0] == second.partition(":")[0]:
            continue
        points = []
        for ranks in sorted(seconds[first].keys() & seconds[second].keys()):
            gap = math.log(seconds[first][ranks] / seconds[second][ranks])
            if abs(gap) > NEARLY:
                points.append((ranks, gap))
        found = []
        for (low, before), (high, after) in pairwise(points):
            if before * after < 0:
                found.append(_rounded(low * (high / low) ** (before / (before - after))))
        if found:
            quicker, slower = (first, second) if points[0][1] < 0 else (second, first)
            lines.append(_in_turns(quicker, slower, found, least=points[0][0]))
    return lines


def _in_turns(quicker: str, slower: str, at: list[str], *, least: int) -> str:
    """Return how two optimizers take turns, in words.

    Args:
        quicker: the one that takes less time at first.
        slower: the other one.
        at: numbers of GPUs at which they meet.
        least: the least number of GPUs.
    """
    where = f"below about {at[0]} GPUs"
    if at[0] == _rounded(least):
        where = f"on {_gpus(least)}"
    text = f"{where} {quicker} takes less time than {slower}"
    for place, until in enumerate(at[1:]):
        text += f", then {(slower, quicker)[place % 2]} up to about {until}"
    return f"{text}, above that {(slower, quicker)[(len(at) - 1) % 2]}"


def _gpus(count: int) -> str:
    return f"{count:,} GPU{'s' if count > 1 else ''}"


def _rounded(value: float) -> str:
    """Return a number rounded to two digits."""
    digits = max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value / 10**digits) * 10**digits:,}"
