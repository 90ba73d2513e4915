"""Plans for hundreds of ranks, made in one process under the fake process group."""

import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

import orthon
from orthon import Dion

RANKS = 512
SHAPES = {
    "q": (4096, 4096),
    "k": (4096, 1024),
    "v": (4096, 1024),
    "o": (4096, 4096),
    "gate": (4096, 14336),
    "up": (4096, 14336),
    "down": (14336, 4096),
}


@pytest.fixture
def many_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=77, world_size=RANKS)
    yield
    dist.destroy_process_group()


class Layer(nn.Module):
    """The matrices of one layer of LLaMA-3 8B."""

    def __init__(self) -> None:
        super().__init__()
        for name, (fan_in, fan_out) in SHAPES.items():
            self.add_module(name, nn.Linear(fan_in, fan_out, bias=False))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(128256, 4096)
        self.layers = nn.ModuleList(Layer() for _ in range(32))


PLAN = {name: ColwiseParallel() for name in ("q", "k", "v", "gate", "up")} | {
    n: RowwiseParallel() for n in ("o", "down")
}


def divided(shape: tuple[int, int]) -> Model:
    """Return the model, without storage, on a mesh of data-parallel and tensor-parallel ranks."""
    with torch.device("meta"):
        model = Model()
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
    for layer in model.layers:
        if shape[1] > 1:
            parallelize_module(layer, mesh["tp"], PLAN)
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return model


@pytest.mark.parametrize("shape", [(512, 1), (64, 8)], ids=str)
def test_the_plan_of_an_8b_model_on_512_ranks_takes_seconds(many_ranks: None, shape: tuple[int, int]) -> None:
    model = divided(shape)
    start = time.perf_counter()
    explanation = orthon.explain(Dion.for_model(model))
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s")
    assert seconds < 30
    matrices = [row for row in explanation.rows if row.rule == "dion"]
    assert len(matrices) == 32 * 7
    whole = sum(row.shape[0] * row.shape[1] for row in matrices)
    # Momentum and Q, in float32: never more than AdamW's two averages on each rank.
    assert sum(row.state_bytes for row in matrices) <= 2 * 4 * whole / RANKS
    table = str(explanation)
    assert f"one step: {sum(len(batch.messages) for batch in explanation.batches)} collectives, " in table
    assert all(8 <= len(batch.messages) <= 12 for batch in explanation.batches if batch.rule == "dion")


@pytest.mark.parametrize("shape", [(512, 1), (64, 8)], ids=str)
@pytest.mark.parametrize("name", ["Muon", "NorMuon", "Dion2", "Dion3"])
def test_plans_of_rules_for_whole_matrices(many_ranks: None, name: str, shape: tuple[int, int]) -> None:
    model = divided(shape)
    start = time.perf_counter()
    explanation = orthon.explain(getattr(orthon, name).for_model(model))
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s")
    assert seconds < 30
    batches = [batch for batch in explanation.batches if batch.rule == name.lower()]
    assert {batch.polar_route for batch in batches} == {"owners"}
    exchanges = [message for batch in batches for message in batch.messages if message.kind == "exchange"]
    # There and back along one axis or two, and what is sent: this rank's parts, and at most one whole matrix a batch.
    assert len(exchanges) == len(batches) * (4 if shape[1] > 1 else 2)
    assert "by" in str(explanation)


def test_the_whole_step_runs_on_512_ranks(many_ranks: None) -> None:
    """The fake group's sums are those of one rank, so that there is nothing to compare with."""
    model = nn.Sequential(nn.Linear(1024, 640, bias=False), nn.Linear(640, 1024, bias=False))
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = Dion([(name, param) for name, param in model.named_parameters()])
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    table = str(orthon.explain(optimizer))
    assert "rows/512" in table
