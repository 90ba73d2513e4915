"""Plans for hundreds of ranks, made in one process under the fake process group."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import orthon
from orthon import Dion
from orthon.sharding import Step
from orthon.step.batches import PlannedBatch
from orthon.step.update import update
from tests.support.llama import LLAMA, Layers
from tests.support.many_ranks import divided, fake_ranks

RANKS = 512
MESHES = [{"fsdp": 512}, {"fsdp": 64, "tp": 8}]


@pytest.fixture
def many_ranks() -> Iterator[None]:
    with fake_ranks(RANKS, 77):
        yield


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_plan_of_an_8b_model_on_512_ranks_takes_seconds(many_ranks: None, mesh: dict[str, int]) -> None:
    model = divided(mesh, every_layer=True)
    start = time.process_time()
    explanation = orthon.explain(Dion.for_model(model))
    seconds = time.process_time() - start
    print(f"{seconds:.1f} s")
    assert seconds < 5
    matrices = [row for row in explanation.rows if row.rule == "dion"]
    assert len(matrices) == 32 * 7
    whole = sum(row.shape[0] * row.shape[1] for row in matrices)
    # Momentum and Q, in float32: never more than AdamW's two averages on each rank.
    assert sum(row.state_bytes for row in matrices) <= 2 * 4 * whole / RANKS
    table = str(explanation)
    assert f"one step: {len(explanation.messages)} collectives, " in table
    waves = [wave for wave in explanation.waves if wave.batches[0].rule == "dion"]
    # All matrices go together, there and back.
    assert [sum(batch.matrices for batch in wave.batches) for wave in waves] == [32 * 7]
    assert all(2 <= len(wave.messages) <= 12 for wave in waves)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", ["Dion", "Muon"])
def test_the_plan_of_a_405b_model_on_512_ranks_takes_seconds(many_ranks: None, name: str, mesh: dict[str, int]) -> None:
    model = divided(mesh, LLAMA["405B"], dtype=torch.bfloat16)
    start = time.process_time()
    explanation = orthon.explain(getattr(orthon, name).for_model(model), machine="h100")
    seconds = time.process_time() - start
    print(f"{seconds:.1f} s")
    assert seconds < 20
    assert sum(batch.matrices for batch in explanation.batches) == 126 * 7


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", ["Muon", "NorMuon", "Dion2", "Dion3"])
def test_plans_of_rules_for_whole_matrices(many_ranks: None, name: str, mesh: dict[str, int]) -> None:
    model = divided(mesh)
    start = time.process_time()
    explanation = orthon.explain(getattr(orthon, name).for_model(model))
    seconds = time.process_time() - start
    print(f"{seconds:.1f} s")
    assert seconds < 5
    batches = [batch for batch in explanation.batches if batch.rule == name.lower()]
    assert {batch.route for batch in batches} == {"owners"}
    waves = [wave for wave in explanation.waves if wave.batches[0].rule == name.lower()]
    exchanges = [message for wave in waves for message in wave.messages if message.kind == "exchange"]
    # There and back. Where rows are chosen, matrices with both sides cut find theirs one collective later than others.
    assert len(exchanges) == len(waves) * (3 if "tp" in mesh and name in ("Dion2", "Dion3") else 2)
    assert "by" in str(explanation)


def test_waves_that_are_alike_are_tried_once(many_ranks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["orthon.explain.dry_run"]
    tried = []

    def noting(batch: PlannedBatch, *rest: Any) -> Step[None]:
        tried.append(len(batch.pieces))
        return update(batch, *rest)

    monkeypatch.setattr(module, "update", noting)
    monkeypatch.setattr("orthon.step.routes.BATCH_BYTES", 1)
    model = divided({"copies": 64, "fsdp": 8}, Layers({"q": (64, 64)}, 4 * RANKS))
    explanation = orthon.explain(Dion.for_model(model, route="owners"))
    waves = [wave for wave in explanation.waves if wave.batches[0].matrices]
    assert [wave.batches[0].matrices for wave in waves] == [RANKS] * 4, "a matrix for each rank in each wave"
    assert tried == [1, RANKS], "the embedding, and one of the waves"
    assert len({wave.messages for wave in waves}) == 1
    assert f"    4  {RANKS:>8}  64×64 " in str(explanation)


def test_the_whole_step_runs_on_512_ranks() -> None:
    """The fake group's sums are those of one rank, so that there is nothing to compare with.

    It refuses exchanges in which a rank gives nothing and gets something. So this is a rank that has work.
    """
    with fake_ranks(RANKS, 0):
        model = nn.Sequential(nn.Linear(1024, 640, bias=False), nn.Linear(640, 1024, bias=False))
        fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,), mesh_dim_names=("fsdp of 0",)))
        optimizer = Dion([(name, param) for name, param in model.named_parameters()])
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        table = str(orthon.explain(optimizer))
    assert "rows/512" in table


def test_a_little_time_is_no_reason_for_two_routes() -> None:
    """Two CPUs would take 3 % less time for these matrices with a part of them by owners, if waves cost nothing."""
    model = Layers({"qkv": (512, 1536), "o": (512, 512), "up": (512, 2048), "down": (2048, 512)}, 12)
    with fake_ranks(2):
        params = [(n, p) for n, p in divided({"fsdp": 2}, model).named_parameters() if max(p.shape) <= 2048]
        routes = {batch.route for batch in orthon.explain(Dion(params, machine="cpu")).batches}
    assert routes == {"shards"}
