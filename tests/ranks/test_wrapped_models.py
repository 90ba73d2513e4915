"""Dion on models that PyTorch's own wrappers have distributed, against one process."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from orthon import Dion
from orthon.testing import Pool, RankError

WORLD = 4
BATCH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(8, 4)).double()


def wrap(kind: str, net: nn.Module) -> tuple[nn.Module, int, int, dict[str, Any]]:
    """Return the distributed model, this rank's place among those that read other data, and the optimizer's options."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if kind == "ddp":
        return DistributedDataParallel(net), rank, world, {}
    if kind == "ddp compressed":
        return net, rank, world, {"replicas": dist.group.WORLD, "sync_gradients": True}
    offload = {"offload_policy": CPUOffloadPolicy(pin_memory=False)} if kind == "fsdp offloaded" else {}
    if kind in ("fsdp", "fsdp offloaded", "fsdp dim 1"):
        mesh = init_device_mesh("cpu", (world,))
        placement = (lambda p: Shard(p.ndim - 1)) if kind == "fsdp dim 1" else None
        for module in [*net, net]:
            fully_shard(module, mesh=mesh, shard_placement_fn=placement, **offload)
        return net, rank, world, {}
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    if kind in ("hsdp", "hsdp compressed"):
        chosen = mesh if kind == "hsdp" else mesh["inner"]
        for module in [*net, net]:
            fully_shard(module, mesh=chosen)
        own = {"replicas": mesh["outer"], "sync_gradients": True} if kind == "hsdp compressed" else {}
        return net, rank, world, own
    plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    if "sequence" in kind:
        plan = {
            "norm": SequenceParallel(sequence_dim=0, use_local_output=True),
            "up": ColwiseParallel(input_layouts=Shard(0)),
            "down": RowwiseParallel(),
        }
    for block in list(net)[:2]:
        parallelize_module(block, mesh["inner"], plan)
    if kind == "fsdp x tp":
        for module in [*net, net]:
            fully_shard(module, mesh=mesh["outer"])
        return net, mesh.get_local_rank("outer"), 2, {}
    return net, 0, 1, {}


def train(kind: str) -> None:
    alone = model()
    net, place, parts, options = wrap(kind, copy.deepcopy(alone))
    optimizer = Dion.for_model(net, lr=0.05, rank_fraction=0.5, **options)
    expected = Dion.for_model(alone, lr=0.05, rank_fraction=0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x, y = (torch.randn(BATCH, n, generator=generator, dtype=torch.float64) for n in (8, 4))
        nn.functional.mse_loss(alone(x), y).backward()
        nn.functional.mse_loss(net(x.chunk(parts)[place]), y.chunk(parts)[place]).backward()
        for each in (expected, optimizer):
            each.step()
            each.zero_grad()
    right = dict(alone.named_parameters())
    for name, param in net.named_parameters():
        whole = param.full_tensor() if isinstance(param, DTensor) else param
        other = right[name.removeprefix("module.")]
        torch.testing.assert_close(whole, other, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "kind",
    [
        "ddp",
        "ddp compressed",
        "fsdp",
        "fsdp dim 1",
        "fsdp offloaded",
        "hsdp",
        "hsdp compressed",
        "tp",
        "fsdp x tp",
    ],
)
def test_trains_as_one_process_does(ranks: Pool, kind: str) -> None:
    ranks.run(WORLD, train, kind)


def fsdp1() -> None:
    net = FullyShardedDataParallel(nn.Linear(8, 8), device_id=torch.device("cpu"), use_orig_params=True)
    Dion.for_model(net)


def test_fsdp1_is_refused(ranks: Pool) -> None:
    with pytest.raises(RankError, match=r"'weight': is a flat parameter .* fully_shard\(model\)"):
        ranks.run(2, fsdp1)


def with_gradient_placed(grad: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(24.0, dtype=torch.float64).view(6, 4) / 10
    alone = nn.Parameter(whole.clone())
    param = nn.Parameter(DTensor.from_local(whole.clone(), mesh, [Replicate()], run_check=False))
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if grad == "partial":
        local = gradient * (dist.get_rank() + 1) / sum(range(1, 1 + mesh.size()))
        param.grad = DTensor.from_local(local, mesh, [Partial()], run_check=False)
    elif grad == "sharded":
        local = gradient.chunk(mesh.size())[dist.get_rank()]
        param.grad = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    alone.grad = gradient
    for p in (alone, param):
        Dion([("w", p)], lr=0.1).step()
    torch.testing.assert_close(param.to_local(), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad", ["partial", "sharded"])
def test_gradients_are_brought_to_the_placements_of_the_parameter(ranks: Pool, grad: str) -> None:
    ranks.run(2, with_gradient_placed, grad)


def partial_parameter() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    Dion([("w", nn.Parameter(DTensor.from_local(torch.ones(4, 4), mesh, [Partial()], run_check=False)))])


def test_a_placement_that_cannot_be_served_is_refused(ranks: Pool) -> None:
    with pytest.raises(RankError, match=r"NotImplementedError.*'w': its placement P.*Replicate\(\) and Shard"):
        ranks.run(2, partial_parameter)


def swapped(after_a_step: bool) -> None:
    """Replace plain parameters by sharded ones in the groups, as accelerate does."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    param = nn.Parameter(torch.ones(6, 4))
    optimizer = Dion([("w", param)])
    if after_a_step:
        param.grad = torch.ones(6, 4)
        optimizer.step()
    part = torch.ones(6 // mesh.size(), 4)
    new = nn.Parameter(DTensor.from_local(part, mesh, [Shard(0)], run_check=False))
    new.grad = torch.ones_like(new)
    optimizer.param_groups[0]["params"] = [new]
    optimizer.step()
    assert isinstance(optimizer.state[new]["momentum"], DTensor)


def test_parameters_may_be_replaced_before_the_first_step_alone(ranks: Pool) -> None:
    ranks.run(2, swapped, False)
    with pytest.raises(RankError, match="'w': has taken the place of another one that has state"):
        ranks.run(2, swapped, True)
