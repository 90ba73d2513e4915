"""Plans: the timeline against hand-made courses, kinds of ranks against all ranks, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import orthon
from orthon import Dion, Dion2, MatrixView, Muon
from orthon.machines import MACHINES
from orthon.plan import planning
from orthon.plan.cluster import Axes, divide
from orthon.plan.timeline import TimedWave, simulated
from tests.support.many_ranks import divided, fake_ranks

H100 = MACHINES["h100"]


def wave(
    work: Sequence[float], sending: Sequence[float], *, launches: Sequence[float] | None = None, link: str = "a"
) -> TimedWave:
    """Return a wave of one rank."""
    return TimedWave(
        kinds=torch.zeros(1, dtype=torch.int64),
        work=torch.tensor([list(work)], dtype=torch.float64),
        launches=torch.tensor([list(launches or [0.0] * len(work))], dtype=torch.float64),
        sending=[[(link, seconds)] if seconds else [] for seconds in (*sending, 0.0)],
    )


@pytest.mark.parametrize(
    ("waves", "on_cpu", "seconds", "exposed"),
    [
        ([], False, 0.0, 0.0),
        ([wave([1, 2], [5])], False, 8.0, 5.0),  # nothing else is there to do
        ([wave([1, 2], [5])], True, 8.0, 5.0),
        ([wave([1, 2], [5])] * 2, False, 13.0, 7.0),  # the link is busy until 11
        ([wave([1, 8], [1])] * 3, False, 27.0, 0.0),  # all but the first message is hidden, and that by the others
        ([wave([1, 8], [1])] * 3, True, 30.0, 3.0),  # the cores send, and do nothing else
        ([wave([1], [], launches=[4])], False, 4.0, 0.0),  # the device waits for the host
        ([wave([9, 1], [1], launches=[1, 4])], False, 11.0, 1.0),  # the host is ahead
    ],
)
def test_courses(waves: list[TimedWave], on_cpu: bool, seconds: float, exposed: float) -> None:
    course = simulated([waves], on_cpu=on_cpu)
    assert course.seconds == pytest.approx(seconds)
    assert course.exposed == pytest.approx(exposed)


def test_links_carry_messages_side_by_side_and_sets_follow_each_other() -> None:
    first, second = wave([1, 0], [6], link="a"), wave([1, 0], [6], link="b")
    assert simulated([[first, second]], on_cpu=False).seconds == pytest.approx(8)
    assert simulated([[first], [second]], on_cpu=False).seconds == pytest.approx(14)


def test_a_collective_waits_for_the_slowest_rank() -> None:
    uneven = TimedWave(
        kinds=torch.tensor([0, 1, 1]),
        work=torch.tensor([[5.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        launches=torch.zeros(2, 2, dtype=torch.float64),
        sending=[[("a", 2.0)], []],
    )
    course = simulated([[uneven]], on_cpu=False)
    assert course.ends.tolist() == [8, 8, 8]
    assert course.working.tolist() == [6, 2, 2]
    assert course.exposed == pytest.approx(2)


_times = st.lists(st.floats(0, 10), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(data=st.lists(st.tuples(_times, _times), max_size=6), on_cpu=st.booleans())
def test_a_step_is_no_faster_than_its_work_or_its_messages(
    data: list[tuple[list[float], list[float]]], on_cpu: bool
) -> None:
    waves = [wave(work, (sending + [0.0] * len(work))[: len(work) - 1]) for work, sending in data]
    work = sum(float(each.work.sum()) for each in waves)
    sending = sum(seconds for each in waves for of_segment in each.sending for _, seconds in of_segment)
    course = simulated([waves], on_cpu=on_cpu)
    assert max(work, sending) - 1e-9 <= course.seconds <= work + sending + 1e-9
    assert course.sending == pytest.approx(sending)
    if on_cpu:
        assert course.seconds == pytest.approx(work + sending)


class Matrices(nn.Module):
    """Some parameters on a mesh of fake ranks."""

    def __init__(self, sizes: tuple[int, ...], placements: list[Any], shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=tuple("abc"[: len(sizes)]))
        for i, shape in enumerate(shapes):
            lying = placements if len(shape) > 1 else [Replicate()] * len(sizes)
            whole = distribute_tensor(torch.zeros(shape, device="meta"), mesh, lying)
            layer = nn.Linear(1, 1, bias=False, device="meta")  # which multiplies by its weight, if that is a matrix
            layer.weight = nn.Parameter(whole)
            self.add_module(f"w{i}", layer)


SHAPES: list[tuple[int, ...]] = [(96, 64)] * 5 + [(40, 72)] * 3 + [(70, 30)] + [(64,)]
MESHES: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "fsdp": ((6,), [Shard(0)]),
    "hsdp": ((2, 3), [Replicate(), Shard(0)]),
    "fsdp x tp": ((3, 2), [Shard(0), Shard(1)]),
}
MAKERS: dict[str, Any] = {
    "dion by owners": lambda model: Dion.for_model(model, route="owners"),
    "dion on shards": lambda model: Dion.for_model(model, route="shards"),
    "muon": Muon.for_model,
    "dion2": Dion2.for_model,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("mesh", MESHES)
def test_some_ranks_speak_for_all(mesh: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_ranks(6, 4):
        model = Matrices(*MESHES[mesh], SHAPES)
        (row,) = orthon.plan(model, {name: MAKERS[name]}, machine="h100").rows
        monkeypatch.setattr(planning, "representatives", lambda kinds: list(range(len(kinds[0]))))
        (of_all,) = orthon.plan(model, {name: MAKERS[name]}, machine="h100").rows
    assert row == of_all


def test_each_rank_as_a_kind_of_its_own_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """If ranks that count as one kind differed, this would find another busiest rank, or other bytes."""
    rows = []
    for apart in (False, True):
        with fake_ranks(6, 1), monkeypatch.context() as patch:
            if apart:
                patch.setattr(planning, "kinds_of_ranks", lambda _, ranks: list(ranks))
            model = Matrices(*MESHES["fsdp"], SHAPES)
            (row,) = orthon.plan(model, {"dion": MAKERS["dion by owners"]}, machine="h100").rows
            rows.append(row)
    assert rows[0].seconds == pytest.approx(rows[1].seconds)
    assert rows[0].wire == pytest.approx(rows[1].wire)
    assert rows[0].work == pytest.approx(rows[1].work)
    assert rows[0].peak_bytes == rows[1].peak_bytes


def test_parameters_on_a_part_of_the_mesh_are_planned_for_all_ranks() -> None:
    """Norms under FSDP × TP lie on the axis of shards alone: other ranks have them on meshes of their own."""
    with fake_ranks(8):
        model = divided({"fsdp": 4, "tp": 2})
        assert model.embed.weight.device_mesh.ndim == 1  # type: ignore[union-attr, operator]
        found = orthon.plan(model, {"dion": Dion.for_model}, machine="h100")
    assert found.ranks == 8
    assert found.rows[0].peak_bytes > 0


def test_one_process() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64, dtype=torch.bfloat16))
    found = orthon.plan(model, {"dion": Dion.for_model, "muon": Muon.for_model}, machine="cpu")
    assert found.ranks == 1
    for row in found.rows:
        assert row.collectives == 0
        assert row.exposed == row.hidden == 0
        assert row.seconds == pytest.approx(sum(row.phases.values()))
        assert row.wire == {"within node": 0.0, "between nodes": 0.0}
        assert row.fits
    assert "dion" in str(found)
    assert found.to_dict()["optimizers"][1]["optimizer"] == "muon"


def test_what_does_not_fit() -> None:
    model = nn.Linear(64, 64, device="meta")
    small = replace(H100, memory=1000.0)
    (row,) = orthon.plan(model, {"dion": Dion.for_model}, machine=small).rows
    assert not row.fits
    assert row.peak_bytes > 1000


def test_faster_machines_take_less_time() -> None:
    with fake_ranks(16):
        model = divided({"fsdp": 16})
        makers = {"dion": Dion.for_model}
        times = [orthon.plan(model, makers, machine=name).rows[0].seconds for name in ("cpu", "a100", "h100", "b200")]
        slow = replace(H100, between_nodes=replace(H100.between_nodes, bandwidth=1e9), name="slow links")
        slowed = orthon.plan(model, makers, machine=slow).rows[0].seconds
    assert times == sorted(times, reverse=True)
    assert slowed > times[2]
    assert math.isfinite(slowed)


def test_the_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    orthon.plan(
        nn.Linear(8, 8),
        {"a": Dion.for_model, "b": Muon.for_model},
        machine="h100",
        progress=lambda *each: told.append(each),
    )
    assert told == [(0, 2, "a"), (1, 2, "b"), (2, 2, "")]


@pytest.mark.parametrize(
    ("optimizers", "machine", "kind", "message"),
    [
        ({}, "h100", ValueError, "optimizers should have at least one, but is empty"),
        ({"sgd": lambda m: torch.optim.SGD(m.parameters())}, "h100", TypeError, "'sgd' should make one of Orthon's"),
        ({"dion": Dion.for_model}, "h1000", ValueError, "h1000"),
        ({"dion": Dion.for_model}, None, TypeError, "machine should be a name or an orthon.Machine, but is None"),
    ],
)
def test_what_is_refused(optimizers: Any, machine: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        orthon.plan(nn.Linear(8, 8), optimizers, machine=machine)


@pytest.mark.parametrize("rank", [0, 11])
@pytest.mark.parametrize("make", [Dion, Muon])
def test_ranks_without_experts(make: Any, rank: int) -> None:
    """Of four experts on six ranks, in two copies, some ranks have none, and so fewer waves than the others."""
    with torch.device("meta"):
        model = nn.ModuleDict({"dense": nn.Linear(64, 64, bias=False)})
        model.experts = nn.Module()
        model.experts.down_proj = nn.Parameter(torch.empty(4, 64, 32))
    with fake_ranks(12, rank):
        mesh = init_device_mesh("cpu", (2, 3, 2), mesh_dim_names=("copies", "shards", "tensor"))
        divide(model, mesh, Axes("copies", "shards", "tensor"), products={"experts.down_proj": Shard(0)})
        groups = [
            {"params": [("dense.weight", model["dense"].weight)]},
            {"params": [("experts.down_proj", model.experts.down_proj)], "view": MatrixView()},
        ]
        (row,) = orthon.plan(model, {"one": lambda _: make(groups)}, machine=H100).rows
    assert row.seconds > 0
    assert row.state_bytes >= 4 * 64 * 32, "momentum of an expert, of the rank that has one"


def test_optimizers_that_are_no_functions_by_name() -> None:
    model = nn.Linear(8, 8)
    wrong: Any = [Dion.for_model]
    with pytest.raises(TypeError, match="optimizers should be a dict of functions by name, but is a list"):
        orthon.plan(model, wrong, machine=H100)
    made: Any = {"mine": Dion([("weight", model.weight)])}
    with pytest.raises(TypeError, match="'mine' should be a function that makes an optimizer, .* but is a Dion"):
        orthon.plan(model, made, machine=H100)
