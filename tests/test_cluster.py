"""Models divided for clusters that are not here: what `parallelize_module` and `fully_shard` would make of them."""

import math
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from orthon.plan.cluster import Axes, divide, fake_ranks, tensor_parallel
from tests.support.llama import LLAMA
from tests.support.many_ranks import Model

STYLES = {
    "tokens": "rowwise",
    "places": "colwise",
    "up": "colwise",
    "down": "rowwise",
}


class Block(nn.Module):
    """Sizes that few meshes divide."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(29, 18)
        self.places = nn.Embedding(7, 18)
        self.up = nn.Linear(18, 29)
        self.down = nn.Linear(29, 18)
        self.head = nn.Linear(18, 29, bias=False)
        self.norm = nn.LayerNorm(18)
        self.experts = nn.Parameter(torch.zeros(3, 12, 5), requires_grad=False)


def block() -> Block:
    with torch.device("meta"):
        return Block()


def lies(param: nn.Parameter) -> tuple[Any, ...]:
    """Return all that tells how a parameter lies."""
    if not isinstance(param, DTensor):
        return tuple(param.shape), param.dtype, param.requires_grad
    shard = param.to_local()
    return (
        param.placements,
        param.device_mesh,
        tuple(param.device_mesh.shape),
        param.device_mesh.mesh_dim_names,
        param.device_mesh.get_coordinate(),
        param._spec.tensor_meta,
        shard.shape,
        shard.stride(),
        shard.device,
        param.requires_grad,
    )


MESHES = [
    ({"dp_shard": 4}, Axes(shards="dp_shard")),
    ({"dp_shard": 1}, Axes(shards="dp_shard")),
    ({"dp_shard": 32}, Axes(shards="dp_shard")),
    ({"dp_replicate": 2, "dp_shard": 3}, Axes("dp_replicate", "dp_shard")),
    ({"tp": 2}, Axes(tensor="tp")),
    ({"tp": 5}, Axes(tensor="tp")),
    ({"dp_shard": 4, "tp": 2}, Axes(None, "dp_shard", "tp")),
    ({"dp_shard": 5, "tp": 3}, Axes(None, "dp_shard", "tp")),
    ({"dp_shard": 4, "tp": 1}, Axes(None, "dp_shard", "tp")),
    ({"dp_replicate": 2, "dp_shard": 3, "tp": 2}, Axes("dp_replicate", "dp_shard", "tp")),
    ({"dp_replicate": 2, "dp_shard": 1, "tp": 2}, Axes("dp_replicate", "dp_shard", "tp")),
    ({"dp_replicate": 2, "dp_shard": 16, "tp": 3}, Axes("dp_replicate", "dp_shard", "tp")),
]


@pytest.mark.parametrize(("sizes", "axes"), MESHES, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_it_is_what_torch_makes(sizes: dict[str, int], axes: Axes) -> None:
    world = math.prod(sizes.values())
    for rank in sorted({0, 1, world // 2, world - 1} & set(range(world))):
        with fake_ranks(world, rank):
            mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
            quick, real = block(), block()
            divide(quick, mesh, axes, products=tensor_parallel(quick, STYLES))
            if axes.tensor is not None:
                torch_styles = {"colwise": ColwiseParallel(), "rowwise": RowwiseParallel()}
                parallelize_module(real, mesh["tp"], {name: torch_styles[style] for name, style in STYLES.items()})
            if axes.shards is not None:
                fully_shard(real, mesh=mesh[tuple(axis for axis in (axes.copies, axes.shards) if axis is not None)])
            found, expected = dict(quick.named_parameters()), dict(real.named_parameters())
            assert found.keys() == expected.keys()
            for name, param in expected.items():
                assert lies(found[name]) == lies(param), f"{name} on rank {rank}"


def test_shards_of_another_dim() -> None:
    for rank in range(8):
        with fake_ranks(8, rank):
            mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp_shard", "tp"))
            quick, real = block(), block()
            divide(quick, mesh, Axes(None, "dp_shard", "tp"), shard_dim=lambda param: int(param.ndim == 3))
            fully_shard(real, mesh=mesh["dp_shard"], shard_placement_fn=lambda param: Shard(int(param.ndim == 3)))
            assert lies(quick.experts) == lies(real.experts)
            assert quick.experts.to_local().shape == (3, 3, 5)


def test_shared_parameters_stay_shared() -> None:
    model = block()
    model.head.weight = model.tokens.weight
    with fake_ranks(4):
        divide(model, init_device_mesh("cpu", (4,), mesh_dim_names=("dp_shard",)), Axes(shards="dp_shard"))
    assert model.head.weight is model.tokens.weight
    assert isinstance(model.head.weight, DTensor)


def test_405b_on_many_ranks_takes_a_moment() -> None:
    with torch.device("meta"):
        model = Model(LLAMA["405B"]).to(torch.bfloat16)
    start = time.process_time()
    with fake_ranks(16384):
        mesh = init_device_mesh("cpu", (2, 1024, 8), mesh_dim_names=("dp_replicate", "dp_shard", "tp"))
        divide(model, mesh, Axes("dp_replicate", "dp_shard", "tp"))
        seconds = time.process_time() - start
        assert model.layers[125].get_submodule("up").weight.to_local().shape == (52, 16384)
    print(f"{seconds:.1f} s")
    assert seconds < 3


def test_what_cannot_be_divided() -> None:
    with fake_ranks(2):
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
        with pytest.raises(ValueError, match="products should name parameters of the model, but has 'side.weight'"):
            divide(block(), mesh, Axes(tensor="tp"), products={"side.weight": Shard(0)})
        with pytest.raises(ValueError, match="model should be on the device meta, but weight is on cpu"):
            divide(nn.Linear(2, 2), mesh, Axes(tensor="tp"))
    with pytest.raises(ValueError, match="'norm' is a LayerNorm, 'colwise'"):
        tensor_parallel(block(), {"norm": "colwise"})
    with pytest.raises(ValueError, match="'up' is a Linear, 'packed'"):
        tensor_parallel(block(), {"up": "packed"})


def test_one_set_of_ranks_at_a_time() -> None:
    with fake_ranks(3, 2):
        assert (dist.get_rank(), dist.get_world_size()) == (2, 3)
        with pytest.raises(RuntimeError, match="this process is one of 3 ranks already"), fake_ranks(2):
            pass
        assert dist.get_world_size() == 3
    assert not dist.is_initialized()
