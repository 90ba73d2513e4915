"""Orthon's optimizers in the Trainer of transformers, and in those of TRL, which are Trainers too.

The Trainer calls what is no class of an optimizer as `factory()(model, **options)`, before it wraps the model. It does
not hand over its arguments. So the factory looks for the Trainer that is calling it. That is the one that holds it.
"""

import sys
from types import FrameType
from typing import Any

from torch import nn

from orthon.integrations.training_arguments import with_arguments
from orthon.optimizers import MixedOptimizer
from orthon.optimizers.common import NamedOptimizer


def hf(optimizer: type[NamedOptimizer], **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return one of Orthon's optimizers in the form in which a `transformers.Trainer` takes it.

    ::

        Trainer(model, args, ..., optimizer_cls_and_kwargs=orthon.integrations.hf(orthon.Dion, lr=0.02))

    The Trainer then makes `orthon.Dion.for_model(model, lr=0.02)`. Under DistributedDataParallel its processes are
    `replicas`. The learning rate that it logs is that of the hidden matrices, and its schedulers move all learning
    rates together.

    What `TrainingArguments` says about the optimizer is used or refused:

    - `learning_rate` is the `lr` of the hidden matrices. Its default, 5e-5, is meant for fine-tuning by AdamW, and far
      too low for these. TRL has other defaults, one for each of its trainers. So where it is at its default, `lr`
      counts. Without `lr` either, the optimizer's own default counts, and a warning says so: the Trainer does not know
      whether a person wrote 5e-5 or nothing.
    - `weight_decay` is `weight_decay`, also where it is at its default, 0.
    - `adam_beta1`, `adam_beta2` and `adam_epsilon` are `betas` and `eps`, also where they are at their defaults. With
      `scalar_algorithm="lion"`, or an optimizer that is Lion itself, they are refused, unless they are at their
      defaults.
    - `optim`, `optim_args` and `optim_target_modules` choose among other optimizers, and are refused.

    An option that is given here may not differ from what is set there.

    Args:
        optimizer: `orthon.Dion`, `Muon`, `NorMuon`, `Dion2`, `Dion3`, or a class of yours that is made like them.
        options: the keyword arguments of its `for_model`, such as lr, scalar_lr, rank_fraction and overrides.

    Returns:
        For the Trainer's `optimizer_cls_and_kwargs`. Errors in the options come when it makes the optimizer, in
        `train()`: a ValueError where they and `TrainingArguments` disagree, otherwise those of `for_model`.

    Raises:
        TypeError: if `optimizer` is no such class.
        ValueError: for `sync_gradients=True`: the Trainer averages gradients itself.
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, NamedOptimizer)):
        raise TypeError(f"hf: optimizer should be a class such as orthon.Dion, but is {optimizer!r}")
    if options.get("sync_gradients"):
        raise ValueError("hf: sync_gradients should be False, but is True; the Trainer averages gradients itself")
    return _Factory(optimizer), options


class _Factory:
    """What the Trainer calls to get what it calls with the model."""

    def __init__(self, optimizer: type[NamedOptimizer]) -> None:
        self.optimizer = optimizer

    def __repr__(self) -> str:
        return f"orthon.integrations.hf(orthon.{self.optimizer.__name__})"

    def __call__(self) -> Any:
        return self._make

    def _make(self, model: nn.Module, **options: Any) -> MixedOptimizer:
        trainer = self._trainer(sys._getframe(1))
        if trainer is None:
            raise TypeError(
                f"{self!r}: should be called by a transformers.Trainer, whose arguments it reads; elsewhere call "
                f"{self.optimizer.__name__}.for_model(model)"
            )
        _refuse_zero(trainer)
        options = with_arguments(options, trainer.args, self.optimizer)
        if _wraps_in_ddp(trainer):
            options.setdefault("replicas", "world")
        return self.optimizer.for_model(model, **options)

    def _trainer(self, frame: FrameType | None) -> Any:
        """Return the Trainer that holds this factory, of those that are at work, or None."""
        while frame is not None:
            found = frame.f_locals.get("self")
            held = getattr(found, "__dict__", {}).get("optimizer_cls_and_kwargs")
            if isinstance(held, tuple) and held[:1] == (self,):
                return found
            frame = frame.f_back
        return None


def _refuse_zero(trainer: Any) -> None:
    if getattr(trainer, "is_deepspeed_enabled", False):
        raise ValueError(
            "hf: TrainingArguments.deepspeed should not be set: ZeRO makes vectors of the weights, which have no rows "
            "and columns; shard with fsdp=True and fsdp_config={'version': 2} instead"
        )


def _wraps_in_ddp(trainer: Any) -> bool:
    """Return whether the Trainer will wrap the model in DistributedDataParallel, for all processes."""
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        return False
    accelerator = trainer.accelerator
    axes = getattr(accelerator, "parallelism_config", None)
    kind = accelerator.distributed_type
    return str(getattr(kind, "value", kind)).startswith("MULTI_") and not (axes and axes.tp_enabled)
