"""Plans of a CPU that speak for other machines, and figures as people read them."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon import Dion, Muon, explain
from orthon.explain.units import amount, duration, operations, size
from orthon.machines import MACHINES, Link
from tests.support.llama import Layers
from tests.support.many_ranks import divided, fake_ranks

FEW = Layers({"q": (1024, 1024), "up": (1024, 4096)}, 4)


def of_eight_cpus(make: Any, **arguments: Any) -> orthon.Explanation:
    with fake_ranks(8, 3):
        return explain(make.for_model(divided({"fsdp": 8}, FEW)), **arguments)


def test_dtypes_are_those_of_the_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["orthon.linalg.polar"], "_cpu_multiplies_bfloat16", lambda: False)
    for machine, bytes_of_number in (("cpu", 4), ("h100", 2), (replace(MACHINES["b200"], name="mine"), 2)):
        explanation = of_eight_cpus(Muon, machine=machine)
        assert {message.bytes / message.numbers for message in explanation.messages} == {bytes_of_number}, machine


def test_routes_are_those_of_the_other_machine() -> None:
    """At rank 1/64 shards send fewer bytes, in more collectives."""

    def routes(link: Link) -> set[str]:
        machine = replace(MACHINES["h100"], within_node=link)
        with fake_ranks(8, 3):
            optimizer = Dion.for_model(divided({"fsdp": 8}, FEW), rank_fraction=1 / 64)
            explanation = explain(optimizer, machine=machine)
        return {batch.route for batch in explanation.batches if batch.matrices}

    assert routes(Link(bandwidth=1e6, latency=1e-6)) == {"shards"}
    assert routes(Link(bandwidth=1e12, latency=1.0)) == {"owners"}


def test_the_optimizer_stays_as_it_is() -> None:
    optimizer = Dion([nn.Parameter(torch.ones(6, 4))], machine="a100")
    before = explain(optimizer)
    assert before.machine == "a100"
    assert explain(optimizer, machine="h100").machine == "h100"
    assert explain(optimizer) == before
    assert optimizer.machine is MACHINES["a100"]
    assert not optimizer.state


def test_a_slower_machine_takes_longer() -> None:
    told = {name: of_eight_cpus(Dion, machine=name) for name in ("cpu", "a100", "b200")}
    shares = [told[name].most_work for name in ("cpu", "a100", "b200")]
    times = [(share.working, share.sending) for share in shares if share is not None]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 3
    for name, explanation in told.items():
        assert f"one step on {name}: about " in str(explanation)


def test_machines_that_nobody_knows() -> None:
    optimizer = Dion([nn.Parameter(torch.ones(6, 4))])
    with pytest.raises(ValueError, match=r"^explain: machine should be .* but is 'h1000'; did you mean 'h100'\?$"):
        explain(optimizer, machine="h1000")
    with pytest.raises(TypeError, match=r"^explain: machine should be .* but is 512$"):
        explain(optimizer, machine=512)  # type: ignore[arg-type]


def test_what_the_busiest_ranks_do_is_printed() -> None:
    with fake_ranks(512, 77):
        explanation = explain(Dion.for_model(divided({"fsdp": 512}, Layers({"q": (4096, 4096)}, 5))), machine="h100")
    here, work = explanation.here, explanation.most_work
    assert here is not None
    assert work is not None
    assert here.working == 0, "other ranks own the five matrices"
    lines = str(explanation).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("rank "))
    assert lines[start].split() == ["rank", "products", "factorizations", "sent", "received", "work", "sending"]
    assert lines[start + 2].split()[:3] == ["77", "this", "one"]
    assert lines[start + 2].split()[3:7] == [*size(here.sent).split(), *size(here.received).split()]
    assert lines[start + 3].startswith(f"{work.rank:>4}  most work, most bytes")
    assert operations(work.products) in lines[start + 3]
    total = f"about {duration(work.working)} of work on the busiest rank, {duration(work.sending)} of sending"
    assert lines[start + 5] == f"one step on h100: {total}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (size(467_123_456_789), "467 GB"),
        (size(999_499_999), "999 MB"),
        (size(999_500_000), "1 GB"),
        (size(1_234_567e12), "1,234,567 TB"),
        (size(0), "0 bytes"),
        (size(999), "999 bytes"),
        (size(1000), "1 kB"),
        (operations(227.4e12), "227 TFLOP"),
        (operations(0), ""),
        (duration(0.1234), "123 ms"),
        (duration(25.04), "25 s"),
        (duration(3600), "3,600 s"),
        (duration(2e-9), "0.002 µs"),
        (amount(6_979_321_856), "6.98 billion"),
        (amount(402e9), "402 billion"),
        (amount(525_336_576), "525 million"),
        (amount(2080), "2,080"),
        (amount(12), "12"),
    ],
)
def test_figures_in_units(text: str, expected: str) -> None:
    assert text == expected
