"""One training step, and the state that it changes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orthon.train.errors import DivergedError
from orthon.train.model.attention_logits import clip_logits
from orthon.train.model.parallelize import gradient_sync
from orthon.train.processes.ranks import Processes
from orthon.train.settings.run import TrainConfig
from orthon.train.step.clipping import clip_gradients
from orthon.train.step.clock import StepClock
from orthon.train.step.optimizers import Optimizers, full_lr
from orthon.train.step.schedule import lr_factor


@dataclass
class Training:
    """What training changes and a checkpoint saves: weights, optimizer state and the number of steps."""

    model: nn.Module
    replica: nn.Module  # the model, or the wrapper that averages its gradients
    optimizers: Optimizers
    clock: StepClock
    ranks: Processes
    step: int = 0  # number of steps done

    def advance(self, sequences: Tensor, config: TrainConfig, report: bool) -> "StepReport | None":
        """Do one step.

        Args:
            sequences: this rank's share of the batch, int64, (number, context + 1).
            config: settings of the run.
            report: whether to return the numbers of the step, for which the device must be waited for.

        Raises:
            DivergedError: a gradient is not finite, or the loss is not. The loss is only checked with `report`.
        """
        clock = self.clock
        started = clock.now() if report else 0.0
        factor = lr_factor(self.step, config.steps, config.schedule)
        self.optimizers.set_lr_factor(factor)
        loss = torch.zeros((), device=clock.device)
        parts = sequences.to(clock.device).chunk(config.accumulation)
        for number, part in enumerate(parts, start=1):
            with gradient_sync(self.replica, number == len(parts)):
                part_loss = token_loss(self.replica, part, config) / config.accumulation
                part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        self.step += 1
        mean_loss = self.ranks.mean(loss.item()) if report else 0.0
        if not math.isfinite(mean_loss):
            raise DivergedError(f"the loss of step {self.step} is {mean_loss}: a lower optimizer.lr may help")
        norm = clip_gradients(self.optimizers, config.clip, config.clip_matrices, self.ranks)
        before_update = clock.now() if report else 0.0
        try:
            self.optimizers.step()
        except FloatingPointError as error:  # a gradient is not finite; weights and state have not changed
            raise DivergedError(f"step {self.step}: {error}") from error
        max_logit = None
        if config.qk_clip is not None:
            max_logit = clip_logits(self.model, config.qk_clip, self.ranks)
        if not report:
            self.optimizers.zero_grad()
            return None
        ended = clock.now()
        self.optimizers.zero_grad()
        share = (ended - before_update) / (ended - started)
        return StepReport(
            loss=mean_loss,
            lr=factor * full_lr(config.optimizer),
            grad_norm=norm.item(),
            max_logit=None if max_logit is None else max_logit.item(),
            optimizer_share=share,
        )


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The numbers of one step, over all ranks."""

    loss: float  # nats per token
    lr: float  # of the hidden matrices
    grad_norm: float
    max_logit: float | None  # before QK-clip; None without it
    optimizer_share: float  # of the time of the step


@torch.no_grad()
def validation_loss(model: nn.Module, sequences: Tensor, config: TrainConfig, ranks: Processes) -> float:
    """Return the mean loss over sequences, in nats per token. All ranks call it together, and all get the same number.

    Args:
        model: the model, not the wrapper.
        sequences: int64, (any number, context + 1), the same on all ranks, which share the work.
        config: settings of the run.
        ranks: who takes part.
    """
    parts = torch.split(sequences, config.batch_size // config.accumulation // ranks.data_world)
    total = 0.0
    for first in range(0, len(parts), ranks.data_world):
        mine = first + ranks.data_rank
        # A rank that has no part left computes a part again, as the other ranks need its weights.
        part = parts[min(mine, len(parts) - 1)]
        loss = token_loss(model, part.to(ranks.device), config).item()
        total += loss * len(part) if mine < len(parts) else 0.0
    return ranks.mean(total) * ranks.data_world / len(sequences)


def token_loss(model: nn.Module, sequences: Tensor, config: TrainConfig) -> Tensor:
    """Return the mean cross-entropy of each token, given the tokens before it. `sequences`: int64, (b, context + 1)."""
    device = sequences.device.type
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device == "cuda")
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        logits = model(input_ids=sequences[:, :-1]).logits
    return cross_entropy(logits.float().flatten(0, 1), sequences[:, 1:].flatten())
