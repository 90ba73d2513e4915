"""The phases of a step: every operation of every rule on every route has one."""

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon import Dion, Muon
from orthon.algorithms import RULES, Batch, Entry, Rule, register_rule
from orthon.algorithms.work import Elementwise
from orthon.machines import MACHINES
from orthon.plan.phases import OTHER, PHASES
from orthon.plan.recorder import Recorder
from orthon.plan.tally import Tally
from tests.rules_table import ON_RANKS, TAIL
from tests.support.counted_run import CUDA, CountedRun, layers_on, run_of
from tests.support.llama import LLAMA

MESHES = {"fsdp": {"fsdp": 8}, "tp": {"fsdp": 4, "tp": 2}, "copies": {"copies": 2, "fsdp": 4}}
NAMES = {"dion": "Dion", "muon": "Muon", "normuon": "NorMuon", "dion2": "Dion2", "dion3": "Dion3"}


def recorded(step: CountedRun, device: torch.device = CUDA) -> dict[str, Tally]:
    """Return what a step costs by phase, the second one: the first moves the state of a batch into one storage."""
    step.make(device)
    with Recorder(MACHINES["h100"]) as recorder:
        step.make(device)
    return recorder.taken()


def sums(tallies: dict[str, Tally]) -> Tally:
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    return total


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("rule", ON_RANKS)
def test_every_operation_on_ranks_has_a_phase(rule: str, mesh: str) -> None:
    name, options = ON_RANKS[rule]
    if options.get("polar_route") == "shards" and mesh == "tp":
        pytest.skip("both sides are cut")
    with layers_on(MESHES[mesh], replace(LLAMA["8B"], count=1)) as layers:
        phases = recorded(run_of(layers, NAMES[name], options))
    assert set(phases) <= set(PHASES)
    assert "communication" in phases
    assert phases["communication"].flops == {}
    work = {"dion": "products", "muon": "polar factor", "normuon": "polar factor"}.get(name, "row selection")
    assert work in phases


@pytest.mark.parametrize("rule", ["adamw", "dion", "dion2", "dion3", "lion", "muon", "normuon"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_operation_in_one_process_has_a_phase(rule: str, device: str) -> None:
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((96, 64), (96, 64), (64, 96))]
    phases = recorded(CountedRun(Dion([{"params": params, "algorithm": rule}])), torch.device(device))
    assert set(phases) <= set(PHASES) - {"communication"}
    assert "momentum" in phases or rule == "adamw"


def test_whole_steps_on_real_tensors_have_phases() -> None:
    params = [nn.Parameter(torch.randn(24, 16)) for _ in range(3)]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = orthon.NorMuon(params, nonfinite="skip")
    with Recorder() as recorder:
        optimizer.step()
        assert set(recorder.taken()) <= set(PHASES)
        optimizer.step()
    phases = recorder.taken()
    assert {"gradients", "momentum", "polar factor", "row moments", "weights"} == set(phases)
    assert recorder.taken() == {}, "taken once"
    assert all(tally.seconds == 0 for tally in phases.values()), "without a machine"


def test_phases_of_the_papers_dion() -> None:
    """Of each matrix: M Q and Mᵀ P, error feedback, and the update, 2·m·n·r each; three passes of Cholesky QR."""
    m, n, r = 512, 256, 64
    params = [nn.Parameter(torch.empty(m, n, device="meta")) for _ in range(3)]
    phases = recorded(CountedRun(Dion(params, rank_fraction=r / n, precision="float32", **Dion.PAPER)))
    product = 3 * 2.0 * m * n * r
    assert phases["products"].flops == {"float32": 2 * product}
    assert phases["momentum"].flops == {"float32": product}
    assert phases["weights"].flops == {"float32": product}
    # The orthonormal side is the shorter one of the two.
    rows = n
    columns = phases["orthonormalization"]
    assert columns.flops == {"float32": 3 * 3 * 2.0 * rows * r * r}
    # Five factorizations: one, two and two in the passes; in each a solve.
    assert columns.factoring == pytest.approx(3 * (5 * r**3 / 3 + 3 * rows * r * r))


@pytest.mark.parametrize("feeds_back", [False, True])
@pytest.mark.parametrize("right_factor", ["normalize", "orthonormalize"])
def test_phases_of_a_tail(right_factor: str, feeds_back: bool) -> None:
    """R is there for the tail; feedback makes it again of T, a matrix if Q is orthonormal. Else M takes no product."""
    m, n, r = 512, 256, 64
    params = [nn.Parameter(torch.empty(m, n, device="meta")) for _ in range(3)]
    options = {"residual_momentum": 1.0 if feeds_back else None, "nesterov": not feeds_back}
    optimizer = Dion(params, rank_fraction=r / n, precision="float32", tail=0.7, right_factor=right_factor, **options)
    phases, product = recorded(CountedRun(optimizer)), 3 * 2.0 * m * n * r
    of_t = 3 * 2.0 * m * r * r * (right_factor == "orthonormalize")
    assert sum(phases["products"].flops.values()) == 2 * product + feeds_back * of_t
    assert phases["tail"].flops == {}
    assert sum(phases["weights"].flops.values()) == product
    assert sum(phases["momentum"].flops.values()) == feeds_back * (product + of_t * n / m)
    assert phases["tail"].bytes >= 3 * 4 * m * n, "the squares of columns read all of N"
    assert phases["momentum"].bytes >= 3 * 4 * m * n


@pytest.mark.parametrize("route", ["owners", "shards"])
def test_phases_of_a_tail_on_ranks(route: str) -> None:
    options = {**TAIL, "nesterov": True, "route": route}
    with layers_on(MESHES["fsdp"], replace(LLAMA["8B"], count=1)) as layers:
        phases = recorded(run_of(layers, "Dion", options))
    assert {"tail", "momentum", "products", "weights", "communication"} <= set(phases) <= set(PHASES)
    assert phases["momentum"].flops == {}


def test_other_rules_have_a_phase_of_their_own() -> None:
    def halve(batch: Batch) -> None:
        batch.descend([grad / 2 for grad in batch.G])

    register_rule(Rule("halve", halve, {"nothing": Entry()}, Elementwise(), {}))
    params = [nn.Parameter(torch.empty(9, 4, device="meta"))]
    try:
        phases = recorded(CountedRun(Muon([{"params": params, "algorithm": "halve"}])))
    finally:
        del RULES["halve"]
    assert set(phases) == {OTHER, "weights"}


def test_recording_is_cheap() -> None:
    X, Y = (torch.empty(8, 8, device="meta") for _ in range(2))

    def work() -> None:
        for _ in range(1000):
            X.add_(Y)
            Z: Tensor = X @ Y
            Z.mul_(2)
            torch.cat([X, Y])
            X.mT.copy_(Y)

    start = time.process_time()
    work()
    alone = time.process_time() - start
    with Recorder(MACHINES["cpu"]) as recorder:
        start = time.process_time()
        work()
        taken = time.process_time() - start
    assert sums(recorder.taken()).launches == 5000
    assert taken - alone < 1.0
    print(f"{taken - alone:.2f} s for 5,000 operations, which take {alone:.2f} s")
