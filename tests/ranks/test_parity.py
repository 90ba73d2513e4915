"""Every rule on any layout computes what it computes in one process."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.ranks import parity
from tests.ranks.layouts import LAYOUTS, layouts_on
from tests.ranks.parity import Case, Problem
from tests.ranks.pool import Pool

WORLDS = (2, 4, 8)


def _table() -> list[object]:
    """Return all cases in the order of world sizes, since another one costs a new process group."""
    table = []
    for world in WORLDS:
        short = set(parity.representative_cases(world))
        for case in parity.cases(world):
            marks = [] if case in short else [pytest.mark.long]
            table.append(pytest.param(case, marks=marks, id=str(case)))
    return table


@pytest.mark.parametrize("case", _table())
def test_ranks_compute_what_one_process_computes(ranks: Pool, case: Case) -> None:
    parity.check(case, ranks.run(case.problem.world, parity.on_this_rank, case, timeout=30))


def _short(cases: Callable[[int], list[Case]], every: int) -> list[object]:
    """Return all cases in the order of world sizes; some belong to the short run."""
    table, i = [], 0
    for world in WORLDS:
        for case in cases(world):
            i += 1
            table.append(pytest.param(case, marks=[] if i % every == 0 else [pytest.mark.long], id=str(case)))
    return table


@pytest.mark.parametrize("case", _short(parity.family_cases, 19))
def test_the_family(ranks: Pool, case: Case) -> None:
    parity.check(case, ranks.run(case.problem.world, parity.on_this_rank, case, timeout=30))


@pytest.mark.parametrize("case", _short(parity.view_cases, 19))
def test_views(ranks: Pool, case: Case) -> None:
    parity.check(case, ranks.run(case.problem.world, parity.on_this_rank, case, timeout=30))


# The table and the judge


def test_the_short_table_has_every_value_on_every_world_size() -> None:
    short = [case for world in WORLDS for case in parity.representative_cases(world)]
    assert 70 <= len(short) <= 90
    assert sum(len(parity.cases(world)) for world in WORLDS) >= 1000
    assert {case.layout for case in short} == LAYOUTS.keys()
    for world in WORLDS:
        here = [case for case in short if case.problem.world == world]
        assert {case.layout for case in here} == set(layouts_on(world))
        assert {case.problem.shapes for case in here} == parity.SHAPES.keys(), world
        assert {case.problem.gradients for case in here} == parity.GRADIENTS.keys(), world
        assert {case.problem.options for case in here} == parity.OPTIONS.keys(), world
        assert {case.problem.dtype for case in here} == parity.TOLERANCE.keys(), world


CASE = Case("unaware", Problem("uneven", "full rank", "defaults", torch.float64, 2))


def test_a_wrong_gradient_on_one_rank_is_found(ranks: Pool) -> None:
    with pytest.raises(AssertionError, match=r"2 ranks, unaware, uneven, .* relative error \S+ on rank 1"):
        parity.check(CASE, ranks.run(2, parity.on_this_rank, CASE, 1))


def test_replicas_that_differ_in_the_last_bit_are_found() -> None:
    results = [[(weight.clone(), momentum) for weight, momentum in parity.in_one_process(CASE.problem)] for _ in "01"]
    parity.check(CASE, results)
    results[1][2][0][3, 4] *= 1 + 1e-15
    with pytest.raises(AssertionError, match="ranks 0 and 1 hold the same part, but differ by"):
        parity.check(CASE, results)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_found(value: float) -> None:
    results = [[(weight.clone(), momentum) for weight, momentum in parity.in_one_process(CASE.problem)] for _ in "01"]
    for result in results:
        result[0][0][1, 1] = value
    with pytest.raises(AssertionError, match="relative error inf"):
        parity.check(CASE, results)


def test_the_wrong_part_of_the_right_result_is_found() -> None:
    case = replace(CASE, layout="fsdp 0")
    whole = parity.in_one_process(case.problem)
    results = [[(weight[rows], momentum[rows]) for weight, momentum in whole] for rows in (slice(7), slice(6, 12))]
    with pytest.raises(AssertionError):
        parity.check(case, results)
