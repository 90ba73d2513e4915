"""The model of a soak run: every rule of the family in one optimizer, and every way to distribute it."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from orthon import MixedOptimizer

BATCH = 8
_IN, _HIDDEN, _OUT = 8, 16, 4
# In double precision and with exact polar factors, so that layouts differ by rounding alone.
_EXACT = {"polar": "svd"}
_RULES: dict[str, dict[str, Any]] = {
    "0.up": {"algorithm": "dion", "rank_fraction": 0.25},
    "0.down": {"algorithm": "dion2", "fraction": 0.5, "selection": "random", **_EXACT},
    "1.up": {"algorithm": "muon", **_EXACT},
    "1.down": {"algorithm": "dion2", "fraction": 0.5, **_EXACT},
    "2.up": {"algorithm": "dion3", "fraction": 0.5, **_EXACT},
    "2.down": {"algorithm": "normuon", **_EXACT},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_IN)
        self.up = nn.Linear(_IN, _HIDDEN)
        self.down = nn.Linear(_HIDDEN, _IN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


def model() -> nn.Sequential:
    """Return blocks with a matrix for each rule, and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(Block(), Block(), Block(), nn.Linear(_IN, _OUT)).double()


def optimizer_of(net: nn.Module, **distributed: Any) -> MixedOptimizer:
    """Return one optimizer with a group for each rule: the blocks' matrices, biases by Lion, the rest by AdamW."""
    named = {name.removeprefix("module."): param for name, param in net.named_parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [(f"{name}.weight", named.pop(f"{name}.weight"))], **options} for name, options in _RULES.items()
    ]
    for algorithm, takes_biases in (("lion", True), ("adamw", False)):
        own = [(name, param) for name, param in named.items() if name.endswith(".bias") == takes_biases]
        groups.append({"params": own, "algorithm": algorithm})
    return MixedOptimizer(groups, algorithm="dion", options={"weight_decay": 0.1}, nonfinite="skip", **distributed)


def set_learning_rates(optimizer: MixedOptimizer, step: int) -> None:
    """Let the learning rates fall: with constant ones rounding becomes as large as the losses in 800 steps."""
    for group in optimizer.param_groups:
        group["lr"] = (0.002 if group["algorithm"] in ("adamw", "lion") else 0.02) / (1 + step / 100)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a step: those of a teacher that does not change."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, _IN, generator=generator, dtype=torch.float64)
    teacher = torch.randn(_IN, _OUT, generator=torch.Generator().manual_seed(10**9), dtype=torch.float64)
    return x, torch.sin(x @ teacher)


@cache
def mesh(kind: str, world: int) -> DeviceMesh:
    """Return the mesh of the first ranks. All ranks call this; it is kept, so that process groups are made once."""
    if kind in ("one process", "ddp", "ddp compressed", "fsdp", "tp"):
        return DeviceMesh("cpu", torch.arange(world), mesh_dim_names=("all",))
    return DeviceMesh("cpu", torch.arange(world).view(2, -1), mesh_dim_names=("outer", "inner"))


def distribute(kind: str, ranks: DeviceMesh) -> tuple[nn.Module, int, int, dict[str, Any]]:
    """Return the distributed model, this rank's place among those that read other data, and the optimizer's options."""
    net = model()
    if kind == "one process":
        return net, 0, 1, {}
    place, world = ranks.get_local_rank(0), ranks.size()
    if kind == "ddp":
        group = ranks.get_group()
        return DistributedDataParallel(net, process_group=group), place, world, {"replicas": group}
    if kind == "ddp compressed":
        return net, place, world, {"replicas": ranks, "sync_gradients": True}
    if kind == "fsdp":
        _shard(net, ranks)
        return net, place, world, {}
    if kind == "tp":
        _cut(net, ranks)
        return net, 0, 1, {}
    place = place * ranks.size(1) + ranks.get_local_rank(1)
    if kind == "hsdp":
        _shard(net, ranks)
        return net, place, world, {}
    if kind == "hsdp compressed":
        _shard(net, ranks["inner"])
        return net, place, world, {"replicas": ranks["outer"], "sync_gradients": True}
    _cut(net, ranks["inner"])
    _shard(net, ranks["outer"], other_dim=kind == "fsdp x tp other dim")
    return net, ranks.get_local_rank("outer"), ranks.size(0), {}


def _cut(net: nn.Sequential, ranks: DeviceMesh) -> None:
    for block in list(net)[:-1]:
        parallelize_module(block, ranks, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def _shard(net: nn.Sequential, ranks: DeviceMesh, *, other_dim: bool = False) -> None:
    """Shard each block's matrices along the dims that tensor parallelism cuts, or along the other ones."""
    cut = [(block.up.weight, 0) for block in list(net)[:-1]] + [(block.down.weight, 1) for block in list(net)[:-1]]
    dims = {id(weight): 1 - dim if other_dim else dim for weight, dim in cut}
    for module in [*net, net]:
        fully_shard(
            module, mesh=ranks, shard_placement_fn=lambda param: Shard(dims[id(param)]) if id(param) in dims else None
        )
