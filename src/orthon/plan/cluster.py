"""A model on the mesh of a cluster that is not here: in one process, without weights, for as many ranks as one likes.

`fully_shard` cuts every parameter into as many chunks as there are ranks. For LLaMA-3 405B on 4,096 ranks that takes 20
seconds. Only one chunk is wanted here, and its shape follows from the placements.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from orthon.sharding.dtensor import dtensor, dtensor_spec
from orthon.sharding.spans import Span


@contextmanager
def fake_ranks(world: int, rank: int = 0) -> Iterator[None]:
    """Within the block, be one of so many ranks, whose collectives do nothing.

    Args:
        world: how many ranks there are.
        rank: which of them this process is.

    Raises:
        RuntimeError: if this process is a rank of a real process group, or of another such block.
    """
    if dist.is_initialized():
        raise RuntimeError(
            f"fake_ranks: this process is one of {dist.get_world_size()} ranks already ({dist.get_backend()}); call it "
            "without torchrun, or after torch.distributed.destroy_process_group()"
        )
    hook = sys.excepthook  # torch puts "[rank0]" before errors, and would do so again for each block
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook
        _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]  # it would give the meshes of these process groups to the next ones


def tensor_parallel(model: nn.Module, modules: Mapping[str, str]) -> dict[str, Placement]:
    """Return where the parameters of modules lie on the axis of tensor parallelism.

    Args:
        model: with linear layers and embeddings.
        modules: by name, "colwise" or "rowwise", which is what `ColwiseParallel` and `RowwiseParallel` do.

    Returns:
        The placements by names of parameters, for `divide`.
    """
    placements: dict[str, Placement] = {}
    for name, style in modules.items():
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear | nn.Embedding) or style not in ("colwise", "rowwise"):
            raise ValueError(
                f"tensor_parallel: modules should name linear layers and embeddings as 'colwise' or 'rowwise', but "
                f"{name!r} is a {type(module).__name__}, {style!r}"
            )
        outputs = style == "colwise"
        # The weight of a linear layer is (out, in), that of an embedding (tokens, width), where the width comes out.
        dim = int(outputs == isinstance(module, nn.Embedding))
        placements[f"{name}.weight"] = Shard(dim)
        if isinstance(module, nn.Linear) and module.bias is not None:
            placements[f"{name}.bias"] = Shard(0) if outputs else Replicate()
    return placements


@dataclass(frozen=True)
class Axes:
    """The names of a mesh's axes, by what they are for; None where there is no such axis. They come in this order.

    Attributes:
        copies: along which ranks have the same weights, as in hybrid sharding.
        shards: along which `fully_shard` cuts weights. With copies there are shards, of which one may be all.
        tensor: of tensor parallelism.
    """

    copies: str | None = None
    shards: str | None = None
    tensor: str | None = None


def divide(
    model: nn.Module,
    mesh: DeviceMesh,
    axes: Axes,
    *,
    products: Mapping[str, Placement] | None = None,
    shard_dim: Callable[[nn.Parameter], int] = lambda _: 0,
) -> None:
    """Replace the parameters of a model by what `parallelize_module` and then `fully_shard` would make of them.

    They get the same placements, meshes and local shapes, on meta. The modules stay as they are: nothing gathers
    weights in a forward pass.

    Args:
        model: on meta. Changed in place; parameters that modules share stay shared.
        mesh: with all axes.
        axes: what the axes of the mesh are for.
        products: by names of parameters, their placement on the axis of tensor parallelism. The others are not on it.
        shard_dim: the dim of a parameter that the shards cut, as `shard_placement_fn` says it to `fully_shard`.

    Raises:
        ValueError: if a parameter has storage, or a name in `products` is none of a parameter.
    """
    products = products or {}
    params = list(model.named_parameters(remove_duplicate=False))
    if unknown := products.keys() - {name for name, _ in params}:
        raise ValueError(f"divide: products should name parameters of the model, but has {sorted(unknown)[0]!r}")
    # A shared parameter lies as the first of its names says that has a place.
    places = {param: products[name] for name, param in reversed(params) if name in products}
    cutter = _Cutter(mesh, axes)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for name, param in params:
        if not param.is_meta:
            raise ValueError(f"divide: model should be on the device meta, but {name} is on {param.device}")
        if param not in made:
            made[param] = cutter.cut(param, places.get(param), shard_dim(param))
    for module in model.modules():
        for child, param in module.named_parameters(recurse=False, remove_duplicate=False):
            module.register_parameter(child, made[param])


class _Cutter:
    """Makes DTensors of parameters."""

    def __init__(self, mesh: DeviceMesh, axes: Axes) -> None:
        self._mesh, self._axes = mesh, axes
        names = mesh.mesh_dim_names or ()
        self._sizes = dict(zip(names, mesh.shape, strict=True))
        self._places = dict(zip(names, mesh.get_coordinate() or (), strict=True))
        self._parts: dict[tuple[str, ...], DeviceMesh] = {}

    def cut(self, param: nn.Parameter, product: Placement | None, dim: int) -> nn.Parameter:
        axes, shape = self._axes, list(param.shape)
        placements: dict[str, Placement] = {}
        if axes.copies is not None:
            placements[axes.copies] = Replicate()
        if axes.shards is not None:
            placements[axes.shards] = Shard(dim)
        if axes.tensor is not None and product is not None:
            placements[axes.tensor] = product
            if isinstance(product, Shard):
                self._shorten(shape, product.dim, axes.tensor)
                # The shards are those of what tensor parallelism leaves. DTensor calls such an axis strided.
                if axes.shards is not None and product.dim == dim and self._sizes[axes.tensor] > 1:
                    placements[axes.shards] = _StridedShard(dim, split_factor=self._sizes[axes.tensor])
        if axes.shards is not None:
            self._shorten(shape, dim, axes.shards)
        if not placements:
            return param
        spec = dtensor_spec(param.dtype, self._part(tuple(placements)), list(placements.values()), param.shape)
        shard = torch.empty(shape, dtype=param.dtype, device="meta")
        return nn.Parameter(dtensor(shard, spec), requires_grad=param.requires_grad)

    def _shorten(self, shape: list[int], dim: int, axis: str) -> None:
        shape[dim] = Span(0, shape[dim]).chunk(self._sizes[axis], self._places[axis]).length

    def _part(self, names: tuple[str, ...]) -> DeviceMesh:
        """Return the mesh with these axes alone."""
        if names not in self._parts:
            self._parts[names] = self._mesh[names]
        return self._parts[names]
