"""Every rule on any layout computes what it computes in one process."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from orthon.testing import Pool, parity
from orthon.testing.gradients import ON_RANKS as GRADIENTS
from orthon.testing.layouts import LAYOUTS, layouts_on
from orthon.testing.problems import SHAPES, VIEWS, Case
from tests.rules_table import DION_BY_ROUTE, FORCED, ON_RANKS, OTHERS_ON_RANKS
from tests.support import parity_cases
from tests.support.parity_cases import WORLDS


def table(of_world: Callable[[int], list[Case]]) -> list[object]:
    """Return all cases in the order of world sizes, since another one costs a new process group."""
    short = set(parity_cases.representatives(of_world))
    return [
        pytest.param(case, marks=[] if case in short else [pytest.mark.long], id=str(case))
        for world in WORLDS
        for case in of_world(world)
    ]


def check(ranks: Pool, case: Case) -> None:
    parity.check(case, ranks.run(case.problem.world, parity.on_this_rank, case, timeout=30))


@pytest.mark.parametrize("case", table(parity_cases.dion_by_owners))
def test_dion_by_owners(ranks: Pool, case: Case) -> None:
    check(ranks, case)


@pytest.mark.parametrize("case", table(parity_cases.dion_on_shards))
def test_dion_on_shards(ranks: Pool, case: Case) -> None:
    check(ranks, case)


@pytest.mark.parametrize("case", table(parity_cases.other_cases))
def test_the_family(ranks: Pool, case: Case) -> None:
    check(ranks, case)


@pytest.mark.parametrize("case", table(parity_cases.view_cases))
def test_views(ranks: Pool, case: Case) -> None:
    check(ranks, case)


@pytest.mark.parametrize("case", table(parity_cases.left_out_cases))
def test_steps_that_are_left_out_and_small_waves(ranks: Pool, case: Case) -> None:
    """Before each step one rank finds a NaN. Waves give each owner one matrix."""
    parity.check(case, ranks.run(case.problem.world, parity.on_this_rank, case, None, None, 1.0, timeout=60))


# The table and the judge


@pytest.mark.parametrize("route", DION_BY_ROUTE)
def test_dions_short_tables_have_every_value_on_every_world_size(route: str) -> None:
    of_world = {"owners": parity_cases.dion_by_owners, "shards": parity_cases.dion_on_shards}[route]
    short = parity_cases.representatives(of_world)
    assert sum(len(of_world(world)) for world in WORLDS) >= 1000
    assert {case.layout for case in short} == LAYOUTS.keys()
    for world in WORLDS:
        here = [case for case in short if case.problem.world == world]
        assert world == 8 or {case.layout for case in here} == set(layouts_on(world))
        assert {case.problem.shapes for case in here} == SHAPES.keys(), world
        assert {case.problem.gradients for case in here} == GRADIENTS.keys(), world
        assert {case.problem.label for case in here} == DION_BY_ROUTE[route].keys(), world
        assert {case.problem.dtype for case in here} == parity.TOLERANCE.keys(), world


def test_the_short_tables_of_others_have_every_value() -> None:
    others = parity_cases.representatives(parity_cases.other_cases)
    views = parity_cases.representatives(parity_cases.view_cases)
    left_out = parity_cases.representatives(parity_cases.left_out_cases)
    assert {case.layout for case in left_out} == LAYOUTS.keys()
    assert {case.problem.label for case in left_out} == set(FORCED)
    assert {case.layout for case in others} == {case.layout for case in views} == LAYOUTS.keys()
    assert {case.problem.gradients for case in others} == {case.problem.gradients for case in views} == GRADIENTS.keys()
    assert {case.problem.label for case in others} == OTHERS_ON_RANKS.keys()
    assert {case.problem.label for case in views} == ON_RANKS.keys()
    assert {case.problem.shapes for case in others} == SHAPES.keys()
    assert {case.problem.shapes for case in views} == VIEWS.keys()


CASE = parity_cases.case("unaware", "uneven", "full rank", "dion", 2)


def test_a_wrong_gradient_on_one_rank_is_found(ranks: Pool) -> None:
    with pytest.raises(AssertionError, match=r"2 ranks, unaware, uneven, .* relative error \S+ on rank 1"):
        parity.check(CASE, ranks.run(2, parity.on_this_rank, CASE, None, 1))


def whole() -> list[parity.Result]:
    """Return what two ranks hold that compute all of it."""
    right = parity.in_one_process(CASE.problem)
    return [[{what: x.clone() for what, x in held.items()} for held in right] for _ in range(2)]


def test_replicas_that_differ_in_the_last_bit_are_found() -> None:
    results = whole()
    parity.check(CASE, results)
    results[1][2]["weight"][3, 4] *= 1 + 1e-15
    with pytest.raises(AssertionError, match="ranks 0 and 1 hold the same part, but differ by"):
        parity.check(CASE, results)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_found(value: float) -> None:
    results = whole()
    for result in results:
        result[0]["weight"][1, 1] = value
    with pytest.raises(AssertionError, match="relative error inf"):
        parity.check(CASE, results)


def test_the_wrong_part_of_the_right_result_is_found() -> None:
    case = replace(CASE, layout="fsdp 0")
    parts = (slice(7), slice(6, 12))
    results = [
        [{what: x[rows] for what, x in held.items()} for held in result]
        for rows, result in zip(parts, whole(), strict=True)
    ]
    with pytest.raises(AssertionError):
        parity.check(case, results)
