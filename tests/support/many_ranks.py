"""Models on meshes of hundreds of ranks, in one process under the fake process group."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from orthon.plan.cluster import fake_ranks as fake_ranks  # where tests of many ranks look for it

# Inputs and outputs of the matrices in a layer of LLaMA-3, and how many layers there are.
LLAMA_8B = (
    {
        "q": (4096, 4096),
        "k": (4096, 1024),
        "v": (4096, 1024),
        "o": (4096, 4096),
        "gate": (4096, 14336),
        "up": (4096, 14336),
        "down": (14336, 4096),
    },
    32,
)
LLAMA_405B = (
    {
        "q": (16384, 16384),
        "k": (16384, 1024),
        "v": (16384, 1024),
        "o": (16384, 16384),
        "gate": (16384, 53248),
        "up": (16384, 53248),
        "down": (53248, 16384),
    },
    126,
)

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

    def __init__(self, shapes: Mapping[str, tuple[int, int]], layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(128256, next(iter(shapes.values()))[0])
        self.layers = nn.ModuleList(Layer(shapes) for _ in range(layers))


def divided(
    mesh_shape: tuple[int, int],
    axes: tuple[str, str] = ("fsdp", "tp"),
    *,
    model: tuple[Mapping[str, tuple[int, int]], int] = LLAMA_8B,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Return a model, without storage, on a mesh of CPUs.

    Args:
        mesh_shape: the sizes of the axes.
        axes: ("fsdp", "tp"), or ("copies", "fsdp") for hybrid sharding.
        model: the shapes of the matrices in a layer, and the number of layers.
        dtype: of the parameters.
    """
    with torch.device("meta"):
        made = Model(*model).to(dtype)
    # torch would take a mesh of another rank for this one, in the same process, if their axes had the same names.
    names = tuple(f"{axis} of {dist.get_rank()}" for axis in axes)
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    sharding = mesh if axes[0] == "copies" else mesh[names[0]]
    for layer in made.layers:
        if axes[1] == "tp" and mesh_shape[1] > 1:
            parallelize_module(layer, mesh[names[1]], {name: PLAN[name] for name, _ in layer.named_children()})
        fully_shard(layer, mesh=sharding)
    fully_shard(made, mesh=sharding)
    return made
