"""A small model, distributed by PyTorch's own wrappers."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

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
