"""The cases in which Orthon's rules on ranks are compared with one process."""

from collections import Counter
from collections.abc import Callable

import torch

from orthon.testing.gradients import ON_RANKS as GRADIENTS
from orthon.testing.layouts import LAYOUTS, layouts_on
from orthon.testing.problems import SHAPES, VIEWS, Case, Problem
from tests.rules_table import DION_ON_RANKS, ON_RANKS, OTHERS_ON_RANKS
from tests.support.short_run import meets

WORLDS = (2, 4, 8)


def case(layout: str, shapes: str, gradients: str, rule: str, world: int, dtype: torch.dtype = torch.float64) -> Case:
    name, options = ON_RANKS[rule]
    return Case(layout, Problem(name, options, rule, shapes, gradients, dtype, world))


def dion_cases(world: int) -> list[Case]:
    """Return every layout with every shape and every kind of gradient, Dion's options and dtypes in turn."""
    result = []
    for i, layout in enumerate(layouts_on(world)):
        for k in range(len(SHAPES) * len(GRADIENTS)):
            shapes, gradients = list(SHAPES)[k // len(GRADIENTS)], list(GRADIENTS)[k % len(GRADIENTS)]
            rule = list(DION_ON_RANKS)[(i + k) % len(DION_ON_RANKS)]
            dtype = torch.float32 if (i + k) % 5 == 4 else torch.float64
            result.append(case(layout, shapes, gradients, rule, world, dtype))
    return result


def other_cases(world: int) -> list[Case]:
    """Return every layout with every other rule, shapes, gradients and dtypes in turn."""
    result = []
    for i, layout in enumerate(layouts_on(world)):
        for j, rule in enumerate(OTHERS_ON_RANKS):
            for k in range(3):
                turn = i + 5 * j + 7 * k
                shapes, gradients = list(SHAPES)[turn % len(SHAPES)], _gradients(rule, layout, i + k)
                # Float32 tells small singular values of low rank from noise, but not well.
                dtype = torch.float32 if turn % 5 == 4 and gradients == "full rank" else torch.float64
                result.append(case(layout, shapes, gradients, rule, world, dtype))
    return result


def view_cases(world: int) -> list[Case]:
    """Return every layout with every view, rules and gradients in turn."""
    rules = list(ON_RANKS)
    result = []
    for i, layout in enumerate(layouts_on(world)):
        for j, view in enumerate(VIEWS):
            for k in range(2):
                rule = rules[(i + 3 * j + 5 * k) % len(rules)]
                gradients = _gradients(rule, layout, i + j + k, views=True)
                result.append(case(layout, view, gradients, rule, world))
    return result


def representatives(of_world: Callable[[int], list[Case]]) -> list[Case]:
    """Return one case of every layout on 2 and 4 ranks, and on 8 ranks of every layout that needs as many.

    It is the first case of the layout with the most of what no earlier one on as many ranks has: shapes, gradients,
    rules or options, and dtypes.
    """
    chosen = []
    for world in WORLDS:
        missing = Counter(value for case in of_world(world) for value in _values(case))
        for layout in layouts_on(world):
            if not meets(world, layout):
                continue
            cases = [case for case in of_world(world) if case.layout == layout]
            best = max(cases, key=lambda case: sum(map(missing.__contains__, _values(case))))
            for value in _values(best):
                missing.pop(value, None)
            chosen.append(best)
    return chosen


def _values(case: Case) -> list[tuple[str, object]]:
    problem = case.problem
    return [(field, getattr(problem, field)) for field in ("shapes", "gradients", "label", "dtype")]


def _gradients(rule: str, layout: str, turn: int, *, views: bool = False) -> str:
    """Return a kind of gradients in turn.

    NorMuon and Dion3 divide rows by their size, of at least 1e-8. The mean of replicas' gradients leaves rounding in
    rows of zeros, and they make an update of that, as they should; cautious decay looks at its sign. Every rule makes
    an update of a head or expert of such zeros.
    """
    if LAYOUTS[layout].compressed and (views or "cautious" in rule or rule.startswith(("normuon", "dion3"))):
        return "full rank"
    return list(GRADIENTS)[turn % len(GRADIENTS)]
