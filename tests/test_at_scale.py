"""What a step sends and computes on hundreds of ranks, counted from the code that would run there."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from orthon.algorithms import LowRank
from orthon.algorithms.dion import PAPER
from tests.support.counted_run import Counts, busiest_run, in_one_process, layers_on, run_of
from tests.support.llama import LLAMA

TAIL = {"tail": 0.7, "right_factor": "orthonormalize", "residual_momentum": None, "nesterov": True}
FSDP_512 = {"fsdp": 512}
FSDP_64_TP_8 = {"fsdp": 64, "tp": 8}


def of_owners(size: str, fraction: float, ranks: int) -> float:
    """Return the bytes that a rank sends on average by owners: M there, M and the update back, Q there and back.

    With the paper's options; by default M does not travel back.
    """
    options = {"rank_fraction": fraction, "rank_multiple_of": 1}
    numbers = 0
    for shape in LLAMA[size].shapes.values():
        numbers += 3 * math.prod(shape) + 2 * max(shape) * LowRank().update_rank(shape, options)
    return 2.0 * LLAMA[size].count * numbers / ranks


def show(counts: Counts) -> None:
    print(
        f"{counts.sent / 1e9:.3f} GB sent, {counts.received / 1e9:.3f} GB received, {counts.collectives} collectives, "
        f"{counts.operations} operations, {counts.flops / 1e12:.2f} TF, with {counts.factoring / 1e12:.2f} of factoring"
    )


def busiest(mesh: dict[str, int], size: str, name: str, options: dict[str, Any]) -> Counts:
    """Return the counts of the rank that works the longest."""
    with layers_on(mesh, LLAMA[size]) as layers:
        counts = busiest_run(layers, name, options).counted()
    show(counts)
    return counts


@pytest.mark.parametrize(("options", "wire", "factoring"), [({}, 3.5e9, 0.8e12), (PAPER, 6.5e9, 0.6e12)])
def test_dion_of_405b_on_512_ranks(options: dict[str, Any], wire: float, factoring: float) -> None:
    """By default M does not travel back, and R is factored as M Q is."""
    with layers_on(FSDP_512, LLAMA["405B"]) as layers:
        step = busiest_run(layers, "Dion", {"rank_fraction": 1 / 4, **options})
        counts = step.counted()
    assert {batch.route for batch in step.batches} == {"owners"}
    show(counts)
    assert counts.wire <= wire
    assert counts.collectives <= 300
    assert counts.operations <= 10_000
    alone = in_one_process("405B", "Dion", 1 / 4, **options)
    count = LLAMA["405B"].count
    factors, flops = (count * sum(getattr(each, of) for each in alone.values()) for of in ("factoring", "flops"))
    assert factors / 512 <= factoring
    assert counts.factoring <= max(2 * factors / 512, *(each.factoring for each in alone.values()))
    assert counts.flops <= max(1.3 * flops / 512, *(each.flops for each in alone.values()))


@pytest.mark.parametrize("fraction", [1 / 4, 1 / 16, 1 / 64])
def test_dion_of_405b_on_two_axes(fraction: float) -> None:
    paper: dict[str, Any] = {"rank_fraction": fraction, **PAPER}
    counts = busiest(FSDP_64_TP_8, "405B", "Dion", paper)
    cheaper = of_owners("405B", fraction, 512)
    with layers_on(FSDP_64_TP_8, replace(LLAMA["405B"], count=1)) as layers:
        on_shards = run_of(layers, "Dion", {**paper, "route": "shards"})
        cheaper = min(cheaper, LLAMA["405B"].count * on_shards.wire)
    default = busiest(FSDP_64_TP_8, "405B", "Dion", {"rank_fraction": fraction})
    assert counts.wire <= 1.2 * cheaper
    assert default.wire <= 0.7 * counts.wire
    for each in (counts, default):
        assert each.collectives <= 300
        assert each.operations <= 10_000


@pytest.mark.parametrize("mesh", [FSDP_512, FSDP_64_TP_8], ids=str)
def test_a_tail_sends_no_more(mesh: dict[str, int]) -> None:
    """By owners M stays where it is without feedback. On shards there are some numbers for each column."""
    fraction: dict[str, Any] = {"rank_fraction": 1 / 4}
    paper, new = {**fraction, **PAPER}, {**fraction, **TAIL}
    by_owners = [busiest(mesh, "405B", "Dion", {**options, "route": "owners"}) for options in (paper, new)]
    assert by_owners[1].wire <= 0.7 * by_owners[0].wire
    assert by_owners[1].collectives <= by_owners[0].collectives
    assert by_owners[1].flops <= by_owners[0].flops
    paper["right_factor"] = new["right_factor"]
    wires = []
    with layers_on(mesh, replace(LLAMA["405B"], count=1)) as layers:
        for options in (paper, new):
            wires.append(run_of(layers, "Dion", {**options, "route": "shards"}).wire)
    assert wires[1] <= 1.02 * wires[0]


def test_dion_of_8b_on_128_ranks() -> None:
    assert busiest({"fsdp": 128}, "8B", "Dion", {"rank_fraction": 1 / 4}).wire <= 0.4e9


@pytest.mark.parametrize("ranks", [64, 4096])
def test_more_ranks_send_less(ranks: int) -> None:
    with layers_on({"fsdp": ranks}, LLAMA["405B"]) as layers:
        wire = busiest_run(layers, "Dion", {"rank_fraction": 1 / 4}).wire
    print(f"{wire / 1e9:.3f} GB")
    largest = 2.25 * 2 * 16384 * 53248  # a rank owns one matrix at least, and sends back M, the update and Q
    assert wire <= of_owners("405B", 1 / 4, ranks) + largest


def test_auto_is_as_good_as_owners_where_there_are_copies() -> None:
    mesh = {"copies": 8, "fsdp": 64}
    auto = busiest(mesh, "405B", "Muon", {})
    owners = busiest(mesh, "405B", "Muon", {"polar_route": "owners"})
    assert auto.flops <= 1.05 * owners.flops
    assert auto.wire <= 1.05 * owners.wire


RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "Dion 1/4": ("Dion", {"rank_fraction": 1 / 4}),
    "Dion 1/64": ("Dion", {"rank_fraction": 1 / 64}),
    "Muon": ("Muon", {}),
    "Dion2": ("Dion2", {}),
}


@cache
def calls(fsdp: int, tp: int) -> dict[str, int]:
    """Return how many functions a step calls on the rank that works the longest, for each rule."""
    mesh = {"fsdp": fsdp, "tp": tp} if tp > 1 else {"fsdp": fsdp}
    with layers_on(mesh, LLAMA["8B"]) as layers:
        return {rule: busiest_run(layers, *which).calls() for rule, which in RULES.items()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("few", "many"), [((64, 1), (4096, 1)), ((8, 8), (512, 8))], ids=str)
def test_the_hosts_work_does_not_grow_with_the_ranks(few: tuple[int, int], many: tuple[int, int], rule: str) -> None:
    before, after = calls(*few)[rule], calls(*many)[rule]
    print(f"{before} and {after} calls of functions")
    assert after <= 1.5 * before
