"""A trial of the optimizer's settings, on a model of one layer, before text or model are loaded."""

import torch
from torch import nn
from transformers import LlamaForCausalLM

from orthon.train.errors import UserError
from orthon.train.model.build import llama_config
from orthon.train.processes.ranks import REPLICATE, Processes
from orthon.train.settings.model import Shape
from orthon.train.settings.optimizer import OptimizerConfig
from orthon.train.settings.shortened import shortened
from orthon.train.step.optimizers import OF_TORCH, Optimizers, build_optimizers, full_lr

SHAPE = Shape(hidden_size=64, layers=1, heads=1, kv_heads=1, ffn=128, context=16)
LARGEST_DECAY = torch.finfo(torch.float32).max  # which the weights of small matrices are multiplied by


def try_options(config: OptimizerConfig, ranks: Processes) -> None:
    """Make the optimizer once, and take a step, for nothing.

    Args:
        config: settings.
        ranks: who takes part in the run.

    Raises:
        UserError: the optimizer refuses one of `optimizer.options`, a rate is too high to compute with, or there is
            nothing to compress.
    """
    if config.compressed_sync and ranks.size(REPLICATE) == 1:
        raise UserError("optimizer.compressed_sync is set, but mesh.dp_replicate is 1: there is nothing to compress")
    decay = max(full_lr(config), config.scalar_lr) * config.weight_decay
    if decay > LARGEST_DECAY:
        raise UserError(
            f"optimizer.weight_decay times a learning rate must be at most {LARGEST_DECAY:g}, the largest number of "
            f"float32, but is {decay:g}"
        )
    # Torch's look at the device for some options. Ours do not, and would compile kernels for a GPU.
    device = ranks.device if config.name in OF_TORCH else torch.device("cpu")
    with device, torch.random.fork_rng(devices=()):
        model = LlamaForCausalLM(llama_config(SHAPE, vocab_size=512))
    optimizers = build_optimizers(model, config.model_copy(update={"compressed_sync": False}), 0, Processes(device))
    _step(model, optimizers, config)


def _step(model: nn.Module, optimizers: Optimizers, config: OptimizerConfig) -> None:
    """One step, as some options are looked at in a step only, and numbers may be too large to compute with."""
    for param in model.parameters():
        param.grad = torch.ones_like(param)  # zeros could leave weights as they are
    try:
        optimizers.step()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"optimizer {config.name}: {' '.join(str(error).split())} (with {_given(config)})") from error


def _given(config: OptimizerConfig) -> str:
    """Return what may be the reason, for messages of torch, which name no setting."""
    words = [f"lr {full_lr(config):g}", f"scalar_lr {config.scalar_lr:g}", f"weight_decay {config.weight_decay:g}"]
    words += [f"{key}={shortened(value)}" for key, value in config.options.items()]
    return ", ".join(words)
