"""The cases in which Orthon's rules on ranks are compared with one process."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from orthon.testing.gradients import ON_RANKS as GRADIENTS
from orthon.testing.layouts import LAYOUTS, layouts_on
from orthon.testing.problems import SHAPES, VIEWS, Case, Problem
from tests.rules_table import DION_BY_ROUTE, FORCED, ON_RANKS, OTHERS_ON_RANKS
from tests.support.short_run import meets

WORLDS = (2, 4, 8)


def case(layout: str, shapes: str, gradients: str, rule: str, world: int, dtype: torch.dtype = torch.float64) -> Case:
    name, options = ON_RANKS[rule]
    return Case(layout, Problem(name, options, rule, shapes, gradients, dtype, world))


def dion_by_owners(world: int) -> list[Case]:
    """Return every layout with every shape and every kind of gradient, Dion's options and dtypes in turn."""
    return _dion_cases(world, DION_BY_ROUTE["owners"])


def dion_on_shards(world: int) -> list[Case]:
    """Return the same on the other route."""
    return _dion_cases(world, DION_BY_ROUTE["shards"])


def _dion_cases(world: int, rules: Mapping[str, object]) -> list[Case]:
    result = []
    for i, layout in enumerate(layouts_on(world)):
        for k in range(len(SHAPES) * len(GRADIENTS)):
            shapes, gradients = list(SHAPES)[k // len(GRADIENTS)], list(GRADIENTS)[k % len(GRADIENTS)]
            rule = list(rules)[(i + k) % len(rules)]
            dtype = torch.float32 if (i + k) % 5 == 4 else torch.float64
            result.append(case(layout, shapes, gradients, rule, world, dtype))
    return result


def other_cases(world: int) -> list[Case]:
    """Return every layout with every other rule, shapes, gradients and dtypes in turn."""
    result = []
    for i, layout in enumerate(layouts_on(world)):
        for j, rule in enumerate(OTHERS_ON_RANKS):
            if not allows(rule, layout, world):
                continue
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
                turn = i + 3 * j + 5 * k
                rule = next(rule for rule in rules[turn % len(rules) :] + rules if allows(rule, layout, world, view))
                gradients = _gradients(rule, layout, i + j + k, views=True)
                result.append(case(layout, view, gradients, rule, world))
    return result


def left_out_cases(world: int) -> list[Case]:
    """Return every layout with every rule by each route that it allows, for steps of which some are left out."""
    result = []
    for i, layout in enumerate(layouts_on(world)):
        for j, rule in enumerate(rule for rule in FORCED if allows(rule, layout, world)):
            shapes = list(SHAPES)[(i + j) % len(SHAPES)]
            chosen = case(layout, shapes, _gradients(rule, layout, i + j), rule, world)
            result.append(replace(chosen, problem=replace(chosen.problem, skips=True)))
    return result


def allows(rule: str, layout: str, world: int, view: str | None = None) -> bool:
    """Return whether matrices that lie so can be worked on by the route that the options force.

    Polar factors on shards need one side that is cut, and one that is not.
    """
    if ON_RANKS[rule][1].get("polar_route") != "shards" or layout == "unaware":
        return True
    kind = LAYOUTS[layout]
    cut = {dim for dim, size in zip(kind.dims, kind.meshes[world], strict=True) if dim is not None and size > 1}
    if view is None:
        return len(cut) == 1
    shape, reads = VIEWS[view]
    reading = reads.read(shape)
    sides = {side for side in (0, 1) if cut & set(reading.sides[side])}
    if len(reading.blocks) > 1 and reading.blocked in sides and None in kind.dims:
        return False  # where ranks have whole blocks, nothing is cut
    return len(sides) == 1


def representatives(of_world: Callable[[int], list[Case]]) -> list[Case]:
    """Return a case of every layout on 2 and 4 ranks, and on 8 of every layout that needs as many, and a few more.

    The case of a layout is the first one with the most of what no earlier one on as many ranks has: shapes, gradients,
    rules or options, and dtypes. Of those with as much, it is the first with the most of what no earlier one has. More
    cases follow while something is missing on so many ranks.
    """
    chosen = []
    nowhere = {value for world in WORLDS for case in of_world(world) for value in _values(case)}
    for world in WORLDS:
        missing = {value for case in of_world(world) for value in _values(case)}
        for layout in layouts_on(world):
            if not meets(world, layout):
                continue
            cases = [case for case in of_world(world) if case.layout == layout]
            best = max(cases, key=lambda case: tuple(len(left & _values(case)) for left in (missing, nowhere)))
            missing -= _values(best)
            nowhere -= _values(best)
            chosen.append(best)
        while missing:
            best = max(of_world(world), key=lambda case: len(missing & _values(case)))
            missing -= _values(best)
            chosen.append(best)
    return chosen


def _values(case: Case) -> set[tuple[str, object]]:
    problem = case.problem
    return {(field, getattr(problem, field)) for field in ("shapes", "gradients", "label", "dtype")}


def _gradients(rule: str, layout: str, turn: int, *, views: bool = False) -> str:
    """Return a kind of gradients in turn.

    NorMuon and Dion3 divide rows by their size, of at least 1e-8. The mean of replicas' gradients leaves rounding in
    rows of zeros, and they make an update of that, as they should; cautious decay looks at its sign. Every rule makes
    an update of a head or expert of such zeros.
    """
    if LAYOUTS[layout].compressed and (views or "cautious" in rule or rule.startswith(("normuon", "dion3"))):
        return "full rank"
    return list(GRADIENTS)[turn % len(GRADIENTS)]
