"""Dion on models that PyTorch's own wrappers have distributed, against one process."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from orthon import Dion
from orthon.testing import Pool, RankError
from tests.support.wrapped_models import BATCH, WORLD, model, wrap


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
