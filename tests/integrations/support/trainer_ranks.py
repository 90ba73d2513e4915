"""A program: the Trainer of transformers on several processes; then a second one that goes on from a checkpoint."""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import Trainer

import orthon
from orthon.integrations import hf
from tests.integrations.support.processes import PROCESSES, leave, whole_weights
from tests.integrations.support.tiny import BATCH, logged, trainer


class OnCPUs(Trainer):
    """A Trainer that shards. Accelerate refuses that on CPUs, and gets what it has on GPUs."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            state = self.accelerator.state
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True


def found(folder: Path, kind: str, make: Any) -> dict[str, Any]:
    def new() -> Any:
        return trainer(
            folder, hf(make, lr=0.02), ddp_backend="gloo", save_strategy="steps", save_steps=3,
            per_device_train_batch_size=BATCH // PROCESSES, gradient_accumulation_steps=2,
            kind=OnCPUs, **({"fsdp": True, "fsdp_config": {"version": 2}} if kind == "fsdp2" else {}),
        )  # fmt: skip

    whole = new()
    whole.train()
    again = new()
    with torch.no_grad():
        next(again.model.parameters()).zero_()
    sharded = sum(isinstance(param, DTensor) for param in whole.model.parameters())
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {
        "replicas": whole.optimizer.optimizer._replicas is torch.distributed.group.WORLD,
        "sharded": sharded,
        "weights": whole_weights(whole.model),
        "losses": logged(whole, "loss"),
        "rates": logged(whole, "learning_rate"),
        "weights again": whole_weights(again.model),
        "losses again": logged(again, "loss"),
    }


if __name__ == "__main__":
    folder, kind, *names = sys.argv[1:]
    leave(Path(folder), {name: found(Path(folder) / name, kind, getattr(orthon, name)) for name in names})
