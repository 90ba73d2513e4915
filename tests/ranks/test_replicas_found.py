"""Replicas: found in the model, named "world", or unknown and then told; and copies beside a frozen, sharded base."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import orthon
from orthon import Dion, explain
from orthon.testing import Pool, RankError
from tests.support.frameworks import AcceleratedOptimizer, LightningOptimizer, lightning_step
from tests.support.wrapped_models import BATCH, model, wrap

WORLD = 2


class LightningModule(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Strategy:
    def __init__(self, model: nn.Module) -> None:
        self.model = model


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.strategy = Strategy(model)


def in_trainer(net: nn.Module) -> nn.Module:
    """A LightningModule that its trainer has wrapped, as `configure_optimizers` sees it."""
    module = LightningModule(net)
    object.__setattr__(module, "_trainer", Trainer(DistributedDataParallel(module)))
    return module


NESTED: dict[str, Any] = {
    "ddp": DistributedDataParallel,
    "module around ddp": lambda net: LightningModule(DistributedDataParallel(net)),
    "two around ddp": lambda net: LightningModule(LightningModule(DistributedDataParallel(net))),
    "compiled ddp": lambda net: torch.compile(DistributedDataParallel(net), backend="eager"),
    "ddp of compiled": lambda net: DistributedDataParallel(torch.compile(net, backend="eager")),
    "trainer": in_trainer,
}


def found(kind: str) -> None:
    alone = model()
    net = NESTED[kind](copy.deepcopy(alone))
    optimizer = Dion.for_model(net, lr=0.05)
    expected = Dion.for_model(alone, lr=0.05)
    assert optimizer._replicas is dist.group.WORLD
    explanation = explain(optimizer)
    assert explanation.messages
    assert not explanation.note
    kinds = {row.parameter.replace("net.", ""): row.rule for row in explanation.rows}
    assert kinds == {row.parameter: row.rule for row in explain(expected).rows}


@pytest.mark.parametrize("kind", NESTED)
def test_replicas_are_found_through_wrappers(ranks: Pool, kind: str) -> None:
    ranks.run(WORLD, found, kind)


def world(given: str) -> str:
    net = model()
    optimizer = Dion.for_model(net, lr=0.05, **({"replicas": "world"} if given == "world" else {}))
    if given == "world":
        assert optimizer._replicas is dist.group.WORLD
    for param in net.parameters():
        param.grad = torch.ones_like(param) * (1 if given != "differ" else dist.get_rank() + 1)
    optimizer.step()
    return explain(optimizer).note


def test_all_processes_as_replicas(ranks: Pool) -> None:
    assert ranks.run(WORLD, world, "world") == ["", ""]
    for note in ranks.run(WORLD, world, "unknown"):
        assert "there are 2 processes, but this one updates 14 of 14 parameters by itself" in note
        assert 'replicas="world"' in note


def test_world_alone_is_no_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = Dion([nn.Parameter(torch.ones(3, 4))], replicas="world")
    assert not explain(optimizer).note
    copy.deepcopy(optimizer)  # which replicas would not allow
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"Dion: replicas=\"world\" asks for all processes.*init_process_group"):
        Dion([nn.Parameter(torch.ones(3, 4))], replicas="world")
    with pytest.raises(ValueError, match="Dion: replicas should be .* 'world', but is 'word'"):
        Dion([nn.Parameter(torch.ones(3, 4))], replicas="word")


class Adapted(nn.Module):
    """A frozen base with an adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.adapter = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)


def beside_frozen(kind: str) -> None:
    net = Adapted()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    options: dict[str, Any] = {}
    if kind == "sharded too":
        fully_shard(net.adapter, mesh=mesh)
    fully_shard(net.base, mesh=mesh)
    optimizer = Dion.for_model(net, **options)
    net(torch.full((2, 8), dist.get_rank() + 1.0)).square().sum().backward()
    if kind == "averaged":
        for param in net.adapter.parameters():
            dist.all_reduce(param.grad)
    optimizer.step()


@pytest.mark.parametrize("kind", ["averaged", "sharded too"])
def test_adapters_beside_a_frozen_base(ranks: Pool, kind: str) -> None:
    ranks.run(WORLD, beside_frozen, kind)


def test_unsynchronized_adapters_beside_a_frozen_base_are_refused(ranks: Pool) -> None:
    with pytest.raises(RankError, match="parameter 'adapter.*': its gradients differ between ranks that have copies"):
        ranks.run(WORLD, beside_frozen, "unsynchronized")


def through_wrappers(kind: str) -> None:
    """Train as Lightning does, with clipping and a scaler; one rank's loss is infinite once."""
    net, place, parts, options = wrap(kind, model())
    if kind == "ddp compressed":
        options |= Dion.PAPER  # a tail needs whole gradients
    optimizer = Dion.for_model(net, lr=0.05, **options)
    outer = LightningOptimizer(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(3):
        before = [p.detach().clone() for p in net.parameters()]
        bad = float("inf") if step == 1 and place == parts - 1 else 1.0
        x, y = torch.randn(2, BATCH, 8, dtype=torch.float64), torch.randn(2, BATCH, 4, dtype=torch.float64)

        def closure(x: Tensor = x[0], y: Tensor = y[0], bad: float = bad) -> None:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(x.chunk(parts)[place]), y.chunk(parts)[place])
            scaler.scale(loss * bad).backward()

        lightning_step(optimizer, closure, scaler, clip=10.0)
        same = [bool((p == old).all()) for p, old in zip(net.parameters(), before, strict=True)]
        assert all(same) if step == 1 else not any(same)
    assert orthon.skipped_steps(outer) == optimizer.skipped_steps == 1
    if kind == "ddp compressed":
        with pytest.raises(RuntimeError, match="optimizer.consolidate"):
            outer.state_dict()
        outer.consolidate()
        optimizer.state_dict()


@pytest.mark.parametrize("kind", ["ddp", "ddp compressed", "fsdp", "hsdp"])
def test_lightning_clips_and_ranks_agree(ranks: Pool, kind: str) -> None:
    ranks.run(4, through_wrappers, kind)


def accelerated(kind: str) -> list[bool]:
    net, place, parts, options = wrap(kind, model())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = AcceleratedOptimizer(Dion.for_model(net, lr=0.05, **options), scaler)
    skipped = []
    for step in range(3):
        x, y = torch.randn(BATCH, 8, dtype=torch.float64), torch.randn(BATCH, 4, dtype=torch.float64)
        loss = nn.functional.mse_loss(net(x.chunk(parts)[place]), y.chunk(parts)[place])
        net.zero_grad()
        scaler.scale(loss * (float("inf") if step == 1 and place == parts - 1 else 1.0)).backward()
        optimizer.step()
        skipped.append(optimizer.step_was_skipped)
    return skipped


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "hsdp"])
def test_accelerate_sees_skipped_steps_on_all_ranks(ranks: Pool, kind: str) -> None:
    assert ranks.run(4, accelerated, kind) == [[False, True, False]] * 4
