"""What the short run has of tables with many layouts: one case of each where it is cheap, or where it must be."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import pytest

from orthon.testing.layouts import LAYOUTS


def meets(world: int, layout: str) -> bool:
    """Return whether the short run meets a layout on that many ranks: on 8 alone if it needs as many."""
    return world < 8 or LAYOUTS[layout].meshes.keys() == {8}


def one_of_each(cases: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return one case, another one in turn, for each layout on each number of ranks where the short run meets it.

    Args:
        cases: they start with a number of ranks and a layout, in this order.
    """
    chosen = []
    for i, ((world, layout), group) in enumerate(groupby(cases, key=lambda case: case[:2])):
        table = list(group)
        if meets(world, layout):
            chosen.append(table[11 * i % len(table)])
    return chosen


def marked(cases: Iterable[tuple[Any, ...]], short: Iterable[tuple[Any, ...]]) -> list[object]:
    """Return all cases, those that are not in the short run marked as long."""
    kept = set(short)
    return [pytest.param(*case, marks=[] if case in kept else [pytest.mark.long]) for case in cases]
