"""Divide a model among many processes, in place."""

import contextlib
import warnings
from collections.abc import Iterator

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM

from orthon.train.errors import UserError
from orthon.train.processes.ranks import REPLICATE, SHARD, TENSOR, Processes
from orthon.train.settings.run import RunConfig

# The styles that transformers' plans name. Between the modules of a plan, every rank has the whole activations.
STYLES = {
    "colwise": ColwiseParallel(),
    "rowwise": RowwiseParallel(),
    "embedding_rowwise": RowwiseParallel(input_layouts=Replicate()),
    "colwise_gather_output": ColwiseParallel(output_layouts=Replicate()),
}


def parallelize(model: LlamaForCausalLM, config: RunConfig, ranks: Processes, average: bool) -> nn.Module:
    """Divide a model among the ranks, and put it on its device.

    Every rank brings the same whole weights and keeps its part of them, so nothing is sent. Modules and parameters
    keep their names.

    Args:
        model: with its weights, on the CPU. Changed in place.
        config: settings of the run.
        ranks: who takes part.
        average: whether the model averages gradients over `dp_replicate`. If not, the optimizer must.

    Returns:
        The module to call in training steps: the model, or a wrapper that averages gradients. For everything else
        use the model.

    Raises:
        UserError: the model cannot be divided by `mesh.tp`.
    """
    if config.checkpoints_activations:
        # Not checkpoint_wrapper: it would change the names of the parameters.
        new_name = getattr(model, "activation_checkpointing_enable", None)
        (new_name or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if ranks.size(TENSOR) > 1:
        _divide_products(model, config, ranks)
    replicas = ranks.size(REPLICATE) if average else 1
    if ranks.size(SHARD) > 1 or (replicas > 1 and ranks.size(TENSOR) > 1):
        # Also for tensor parallelism with replicas and no shards: DistributedDataParallel takes no DTensors.
        _divide_weights(model, ranks, replicas > 1)
    replica: nn.Module = model.to(ranks.device)
    if replicas > 1 and not isinstance(model, FSDPModule):
        assert ranks.mesh is not None
        group = ranks.mesh[REPLICATE].get_group()
        replica = DistributedDataParallel(replica, process_group=group, gradient_as_bucket_view=True)
    return replica


@contextlib.contextmanager
def gradient_sync(model: nn.Module, wanted: bool) -> Iterator[None]:
    """In the `with` block, let backward passes exchange gradients, or only add them up on each rank.

    Args:
        model: from `parallelize`.
        wanted: whether this is the last part of a batch.
    """
    if isinstance(model, DistributedDataParallel) and not wanted:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    yield


def _divide_products(model: LlamaForCausalLM, config: RunConfig, ranks: Processes) -> None:
    assert ranks.mesh is not None
    shape, tp = config.model.shape, ranks.size(TENSOR)
    divided = {
        "model.heads": shape.heads,
        "model.kv_heads": shape.kv_heads,
        "model.ffn": shape.ffn,
        "the number of different tokens": model.config.vocab_size,
    }
    for name, number in divided.items():
        if number % tp:
            raise UserError(f"mesh.tp must divide {name} ({number}) but is {tp}")
    plan: dict[str, ParallelStyle] = {name: STYLES[style] for name, style in model.tp_plan.items()}
    parallelize_module(model, ranks.mesh[TENSOR], plan, src_data_rank=None)


def _divide_weights(model: LlamaForCausalLM, ranks: Processes, replicate: bool) -> None:
    assert ranks.mesh is not None
    mesh = ranks.mesh[REPLICATE, SHARD] if replicate else ranks.mesh[SHARD]
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # The logits that tensor parallelism gathers are a view. Nothing changes them in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
