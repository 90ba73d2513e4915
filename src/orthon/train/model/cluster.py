"""Divide a model without weights among the processes of a cluster that is not here, as the trainer would."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Shard
from transformers import PreTrainedModel

from orthon.plan.cluster import Axes, divide, fake_ranks, tensor_parallel
from orthon.train.errors import UserError
from orthon.train.processes.ranks import AXES, REPLICATE, SHARD, TENSOR, Processes

# What must be a multiple of mesh.tp, by its names in transformers' configurations.
DIVIDED = {
    "num_attention_heads": "heads",
    "num_key_value_heads": "key and value heads",
    "intermediate_size": "inner width of the feed-forward blocks",
    "num_local_experts": "number of experts",
    "num_experts": "number of experts",
    "n_routed_experts": "number of experts",
    "vocab_size": "number of different tokens",
}


@contextmanager
def on_cluster(model: PreTrainedModel, sizes: tuple[int, int, int]) -> Iterator[Processes]:
    """Within the block, the model is divided, and this process is the first rank of a mesh whose others do not exist.

    As in the trainer, weights lie whole on ranks that only have other parts of the batch. Experts are divided one by
    one along the axis of tensor parallelism.

    Args:
        model: on meta. Changed in place, for good.
        sizes: dp_replicate, dp_shard and tp.

    Raises:
        UserError: the model cannot be divided by tp.
    """
    copies, shards, tensor = sizes
    products = _products(model, tensor) if tensor > 1 else {}
    world = copies * shards * tensor
    if world == 1:
        yield Processes(torch.device("cpu"))
        return
    with fake_ranks(world):
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=AXES)
        # As `parallelize` does it: copies alone are those of DistributedDataParallel, which leaves weights as they are.
        hybrid = copies > 1 and shards * tensor > 1
        axes = Axes(
            REPLICATE if hybrid else None, SHARD if hybrid or shards > 1 else None, TENSOR if tensor > 1 else None
        )
        divide(model, mesh, axes, products=products, shard_dim=lambda param: _shard_dim(param, sizes))
        yield Processes(torch.device("cpu"), mesh, 0, world)


def _shard_dim(param: nn.Parameter, sizes: tuple[int, int, int]) -> int:
    """Experts that are fewer than the ranks are cut along their next dim, if that divides. Else some would be idle."""
    _, shards, tensor = sizes
    few = param.ndim == 3 and len(param) < shards * tensor
    return int(few and param.shape[1] % shards == 0)


def _products(model: PreTrainedModel, tp: int) -> dict[str, Placement]:
    """Return where parameters lie along the axis of tensor parallelism, by transformers' own plan."""
    config = model.config.get_text_config()
    for attribute, name in DIVIDED.items():
        number = getattr(config, attribute, None)
        if isinstance(number, int) and number % tp:
            raise UserError(f"mesh.tp must divide the {name} ({number}) but is {tp}")
    if not model.tp_plan:
        raise UserError(
            f"mesh.tp is {tp}, but transformers has no plan of tensor parallelism for {type(model).__name__}: "
            "write --mesh.tp 1 and a larger --mesh.dp-shard"
        )
    styles = {re.sub(r"\\\*", r"\\d+", re.escape(name)): style for name, style in model.tp_plan.items()}
    modules: dict[str, str] = {}
    experts: dict[str, Placement] = {}
    for name, module in model.named_modules():
        style = next((style for pattern, style in styles.items() if re.fullmatch(pattern, name)), "")
        for kind in ("colwise", "rowwise"):
            if isinstance(module, nn.Linear | nn.Embedding) and kind in style:
                modules[name] = kind
        if name.endswith(".experts"):
            experts |= {f"{name}.{child}": Shard(0) for child, _ in module.named_parameters(recurse=False)}
    products = tensor_parallel(model, modules) | experts
    for name, placement in products.items():
        size = model.get_parameter(name).shape
        if isinstance(placement, Shard) and size[placement.dim] % tp:
            raise UserError(f"mesh.tp must divide dim {placement.dim} of {name} ({size[placement.dim]}) but is {tp}")
    return products
