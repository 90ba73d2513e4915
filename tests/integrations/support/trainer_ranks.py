"""A program: the Trainer of transformers on several processes; then a second one that goes on from a checkpoint."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

import orthon
from orthon.integrations import hf
from tests.integrations.support.processes import PROCESSES, leave
from tests.integrations.support.tiny import BATCH, logged, trainer


def weights(run: Any) -> dict[str, Tensor]:
    whole = {}
    for name, value in run.model.state_dict().items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        whole[name] = value.detach().clone()
    return whole


def found(folder: Path, make: Any) -> dict[str, Any]:
    def new() -> Any:
        return trainer(
            folder, hf(make, lr=0.02), ddp_backend="gloo", save_strategy="steps", save_steps=3,
            per_device_train_batch_size=BATCH // PROCESSES, gradient_accumulation_steps=2,
        )  # fmt: skip

    whole = new()
    whole.train()
    again = new()
    with torch.no_grad():
        next(again.model.parameters()).zero_()
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {
        "replicas": whole.optimizer.optimizer._replicas is torch.distributed.group.WORLD,
        "weights": weights(whole),
        "losses": logged(whole, "loss"),
        "rates": logged(whole, "learning_rate"),
        "weights again": weights(again),
        "losses again": logged(again, "loss"),
    }


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    leave(Path(folder), {name: found(Path(folder) / name, getattr(orthon, name)) for name in names})
