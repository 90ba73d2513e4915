"""A trial of the optimizer's options, on a model of one layer, before text or model are loaded."""

import torch
from torch import nn
from transformers import LlamaForCausalLM

from orthon.train.errors import UserError
from orthon.train.model.build import llama_config
from orthon.train.processes.ranks import REPLICATE, Processes
from orthon.train.settings.model import Shape
from orthon.train.settings.optimizer import OptimizerConfig
from orthon.train.step.optimizers import Optimizers, build_optimizers

SHAPE = Shape(hidden_size=64, layers=1, heads=1, kv_heads=1, ffn=128, context=16)
OF_TORCH = ("torch-muon", "adamw")


def try_options(config: OptimizerConfig, ranks: Processes) -> None:
    """Make the optimizer once for nothing.

    Args:
        config: Settings.
        ranks: Who takes part in the run.

    Raises:
        UserError: The optimizer refuses one of `optimizer.options`, or there is nothing to compress.
    """
    if config.compressed_sync and ranks.size(REPLICATE) == 1:
        raise UserError("optimizer.compressed_sync is set, but mesh.dp_replicate is 1: there is nothing to compress")
    of_torch = config.name in OF_TORCH
    device = torch.device("cpu" if of_torch else "meta")
    with device, torch.random.fork_rng(devices=()):
        model = LlamaForCausalLM(llama_config(SHAPE, vocab_size=512))
    optimizers = build_optimizers(model, config.model_copy(update={"compressed_sync": False}), 0, Processes(device))
    if of_torch:
        _step(model, optimizers, config)


def _step(model: nn.Module, optimizers: Optimizers, config: OptimizerConfig) -> None:
    """One step, as torch's optimizers look at some of their options in a step only."""
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    try:
        optimizers.step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer {config.name}: {' '.join(str(error).split())}") from error
