"""What a step sends and computes on hundreds of ranks, counted from the code that would run there."""

import math
from typing import Any

import pytest

from orthon.algorithms import LowRank
from tests.support.at_scale import LLAMA, Counts, busiest, in_one_process, shapes, step_on, step_on_busiest

FSDP_512 = {"dp": 512}
FSDP_64_TP_8 = {"dp": 64, "tp": 8}


def of_owners(size: str, fraction: float, ranks: int) -> float:
    """Return the bytes that a rank sends on average by owners: M there, M and the update back, Q there and back."""
    options = {"rank_fraction": fraction, "rank_multiple_of": 1}
    numbers = 0
    for shape in shapes(size).values():
        numbers += 3 * math.prod(shape) + 2 * max(shape) * LowRank().update_rank(shape, options)
    return 2.0 * LLAMA[size][0] * numbers / ranks


def show(counts: Counts) -> None:
    print(
        f"{counts.sent / 1e9:.3f} GB sent, {counts.received / 1e9:.3f} GB received, {counts.collectives} collectives, "
        f"{counts.operations} operations, {counts.flops / 1e12:.2f} TF, with {counts.factoring / 1e12:.2f} of factoring"
    )


def test_dion_of_405b_on_512_ranks() -> None:
    with step_on_busiest(FSDP_512, "405B", "Dion", {"rank_fraction": 1 / 4}) as step:
        counts = step.counted()
        assert step.routes == {"owners"}
    show(counts)
    assert counts.wire <= 6.5e9
    assert counts.collectives <= 300
    assert counts.operations <= 10_000
    alone = in_one_process("405B", "Dion", 1 / 4)
    layers = LLAMA["405B"][0]
    factoring, flops = (layers * sum(getattr(each, of) for each in alone.values()) for of in ("factoring", "flops"))
    assert factoring / 512 <= 0.6e12
    assert counts.factoring <= max(2 * factoring / 512, *(each.factoring for each in alone.values()))
    assert counts.flops <= max(1.3 * flops / 512, *(each.flops for each in alone.values()))


@pytest.mark.parametrize("fraction", [1 / 4, 1 / 16, 1 / 64])
def test_dion_of_405b_on_two_axes(fraction: float) -> None:
    counts = busiest(FSDP_64_TP_8, "405B", "Dion", {"rank_fraction": fraction})
    show(counts)
    cheaper = of_owners("405B", fraction, 512)
    options = {"rank_fraction": fraction, "route": "shards"}
    with step_on(0, FSDP_64_TP_8, "405B", "Dion", options, layers=1) as step:
        cheaper = min(cheaper, LLAMA["405B"][0] * step.wire())
    assert counts.wire <= 1.2 * cheaper
    assert counts.collectives <= 300
    assert counts.operations <= 10_000


def test_dion_of_8b_on_128_ranks() -> None:
    counts = busiest({"dp": 128}, "8B", "Dion", {"rank_fraction": 1 / 4})
    show(counts)
    assert counts.wire <= 0.4e9


@pytest.mark.parametrize("ranks", [64, 4096])
def test_more_ranks_send_less(ranks: int) -> None:
    with step_on_busiest({"dp": ranks}, "405B", "Dion", {"rank_fraction": 1 / 4}) as step:
        wire = step.wire()
    print(f"{wire / 1e9:.3f} GB")
    largest = 2.25 * 2 * 16384 * 53248  # a rank owns one matrix at least, and sends back M, the update and Q
    assert wire <= of_owners("405B", 1 / 4, ranks) + largest


def test_auto_is_as_good_as_owners_where_there_are_copies() -> None:
    mesh = {"replicate": 8, "dp": 64}
    auto = busiest(mesh, "405B", "Muon", {})
    owners = busiest(mesh, "405B", "Muon", {"polar_route": "owners"})
    show(auto)
    assert auto.flops <= 1.05 * owners.flops
    assert auto.wire <= 1.05 * owners.wire


@pytest.mark.parametrize("mesh", [({"dp": 64}, {"dp": 4096}), ({"dp": 8, "tp": 8}, {"dp": 512, "tp": 8})], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [("Dion", {"rank_fraction": 1 / 4}), ("Dion", {"rank_fraction": 1 / 64}), ("Muon", {}), ("Dion2", {})],
)
def test_the_hosts_work_does_not_grow_with_the_ranks(
    name: str, options: dict[str, Any], mesh: tuple[dict[str, int], dict[str, int]]
) -> None:
    calls = []
    for each in mesh:
        with step_on_busiest(each, "8B", name, options) as step:
            calls.append(step.calls())
    print(f"{calls[0]} and {calls[1]} calls of functions")
    assert calls[1] <= 1.5 * calls[0]
