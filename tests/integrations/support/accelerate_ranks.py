"""A program: trains with Accelerate on several processes, saves on the way, and goes on from there once more."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import orthon
from tests.integrations.support.processes import leave, whole_weights

CLIP = 0.1
SCALE = 2.0**10
STEPS, SAVED, ACCUMULATED = 5, 2, 2
BAD = (1, 3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module, micro_step: int, rank: int, bad: bool = False) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(10 * micro_step + rank))
    return model(x).float().square().mean() * (float("inf") if bad else 1.0)


def accelerator_of(kind: str, precision: str) -> Accelerator:
    """Return an Accelerator. It refuses FSDP and float16 on CPUs, and gets what it has on GPUs."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2) if kind == "fsdp2" else None
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_steps=ACCUMULATED,
        fsdp_plugin=plugin,
    )
    if plugin is not None:
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if precision == "fp16":
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return accelerator


class Run:
    """A training run.

    Args:
        kind: "ddp" makes the optimizer of the wrapped model, "ddp together" hands both to Accelerate, "fsdp2" too.
        precision: "no", "bf16" or "fp16".
        bad: steps with an infinity in the gradient of one process.
    """

    def __init__(self, kind: str, precision: str, bad: tuple[int, ...] = ()) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.accelerator = accelerator_of(kind, precision)
        if kind == "ddp":
            self.model = self.accelerator.prepare(net())
            optimizer = orthon.Dion.for_model(self.model, lr=0.05)
        else:
            options = {"replicas": "world"} if kind == "ddp together" else {}
            self.model = net()
            optimizer = orthon.Dion.for_model(self.model, lr=0.05, **options)
        self.plain = optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        if kind == "ddp":
            self.optimizer, self.schedule = self.accelerator.prepare(optimizer, schedule)
        else:
            self.model, self.optimizer, self.schedule = self.accelerator.prepare(self.model, optimizer, schedule)
        self.bad = bad
        self.skipped: list[bool] = []
        self.rates: list[list[float]] = []

    def steps(self, first: int, end: int) -> None:
        rank = dist.get_rank()
        for micro_step in range(first * ACCUMULATED, end * ACCUMULATED):
            with self.accelerator.accumulate(self.model):
                bad = rank == 0 and micro_step // ACCUMULATED in self.bad
                self.accelerator.backward(loss_of(self.model, micro_step, rank, bad))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
                if self.accelerator.sync_gradients:
                    self.skipped.append(self.optimizer.step_was_skipped)
                    self.rates.append([group["lr"] for group in self.optimizer.param_groups])


def found(folder: Path, kind: str, precision: str) -> dict[str, Any]:
    """Train, save on the way, load that, and train again. In float16 one process has infinities in some steps."""
    bad = BAD if precision == "fp16" else ()
    run = Run(kind, precision, bad)
    result: dict[str, Any] = {"replicas": run.plain._replicas is not None}
    run.steps(0, SAVED)
    run.accelerator.save_state(str(folder))
    run.steps(SAVED, STEPS)
    result |= {"weights": whole_weights(run.model), "skipped": [*run.skipped], "rates": [*run.rates]}
    result["sharded"] = sum(isinstance(p, DTensor) for group in run.plain.param_groups for p in group["params"])
    if kind != "fsdp2" or precision != "fp16":  # Accelerate cannot load into a scaler that has been at work
        run.accelerator.load_state(str(folder))
        run.steps(SAVED, STEPS)
        result["again"] = whole_weights(run.model)
    other = Run(kind, precision, bad)
    with torch.no_grad():
        for param in other.model.parameters():
            param.zero_()
    other.accelerator.load_state(str(folder))
    other.steps(SAVED, STEPS)
    result["anew"] = whole_weights(other.model)
    return result


if __name__ == "__main__":
    folder, kind, *precisions = sys.argv[1:]
    leave(Path(folder), {precision: found(Path(folder) / precision, kind, precision) for precision in precisions})
