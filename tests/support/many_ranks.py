"""Models on meshes of hundreds of ranks, in one process under the fake process group."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from orthon.plan.cluster import fake_ranks as fake_ranks  # where tests of many ranks look for it
from orthon.sharding import local, relocated
from tests.support.llama import LLAMA, Layers

PLAN = {name: ColwiseParallel() for name in ("q", "k", "v", "gate", "up")} | {
    n: RowwiseParallel() for n in ("o", "down")
}


class Layer(nn.Module):
    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (fan_in, fan_out) in shapes.items():
            self.add_module(name, nn.Linear(fan_in, fan_out, bias=False))


class Model(nn.Module):
    """A stack of layers, and an embedding as wide as their first matrix."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.embed = nn.Embedding(128256, next(iter(layers.shapes.values()))[0])
        self.layers = nn.ModuleList(Layer(layers.shapes) for _ in range(layers.count))

    def repeat_the_layer(self, count: int) -> None:
        """Have so many layers that lie as the only one does."""
        (first,) = self.layers
        for _ in range(count - 1):
            with torch.device("meta"):
                layer = Layer({name: (1, 1) for name, _ in first.named_children()})
            for name, matrix in first.named_children():
                weight = matrix.get_parameter("weight").detach()
                layer.get_submodule(name).weight = nn.Parameter(relocated(weight, torch.empty_like(local(weight))))
            self.layers.append(layer)


def divided(
    mesh: Mapping[str, int],
    layers: Layers = LLAMA["8B"],
    *,
    dtype: torch.dtype = torch.float32,
    every_layer: bool = False,
) -> Model:
    """Return a model, without storage, on a mesh of CPUs.

    Args:
        mesh: the sizes of its axes: "copies", "fsdp", "tp", in this order. There need not be all of them.
        layers: of the model.
        dtype: of the parameters.
        every_layer: whether torch shards every layer, which takes long, and gives each parameter a mesh of its own that
            is equal to others. Otherwise it shards one, and others lie as that does.
    """
    with torch.device("meta"):
        made = Model(layers if every_layer else replace(layers, count=1)).to(dtype)
    # torch would take a mesh of another rank for this one, in the same process, if their axes had the same names.
    axes = {axis: f"{axis} of {dist.get_rank()}" for axis in mesh}
    devices = init_device_mesh("cpu", tuple(mesh.values()), mesh_dim_names=tuple(axes.values()))
    sharding = devices[tuple(name for axis, name in axes.items() if axis != "tp")]
    for layer in made.layers:
        if "tp" in mesh:
            parallelize_module(layer, devices[axes["tp"]], {name: PLAN[name] for name in layers.shapes})
        fully_shard(layer, mesh=sharding)
    fully_shard(made, mesh=sharding)
    if not every_layer:
        made.repeat_the_layer(layers.count)
    return made
