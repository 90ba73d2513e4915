"""Runs of Lightning's Trainer on several processes: `torchrun -m tests.integrations.lightning_run STRATEGY FOLDER`.

A run of four epochs, which keeps a checkpoint of each, and one that goes on from the second. Each process prints one
line: the word RESULT and what it has, as JSON.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import orthon
from orthon.sharding import is_dtensor
from tests.integrations.support.processes import end

EPOCHS, BATCHES, SIZE = 4, 2, 4


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def rows() -> Tensor:
    return torch.randn(2 * BATCHES * SIZE, 6, generator=torch.Generator().manual_seed(1))


class Module(LightningModule):
    """Trains a net, in shards where the strategy has a mesh."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for layer in (self.net[2], self.net):
                fully_shard(layer, mesh=mesh)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(rows()[self.global_rank :: 2], batch_size=SIZE)

    def training_step(self, batch: Tensor) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = orthon.Dion.for_model(self, lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def trained(strategy: Any, folder: Path, resumed: bool) -> dict[str, Any]:
    keep = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = Trainer(
        strategy=strategy, devices=2, accelerator="cpu", max_epochs=EPOCHS, logger=False, callbacks=[keep],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=folder,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, ckpt_path=str(folder / "epoch=1.ckpt") if resumed else None)
    optimizer = module.optimizers().optimizer
    full = {n: p.full_tensor() if is_dtensor(p) else p for n, p in module.net.named_parameters()}
    return {
        "rank": trainer.global_rank,
        "steps": trainer.global_step,
        "lr": [group["lr"] for group in optimizer.param_groups],
        "ranks": [m.layout.everyone.size for m in optimizer.members()],
        "replicas": [m.layout.replicas.size for m in optimizer.members()],
        "weights": {name: value.detach().tolist() for name, value in full.items()},
    }


def strategy_of(name: str) -> Any:
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")


def main() -> None:
    warnings.simplefilter("ignore")
    name, folder = sys.argv[1], Path(sys.argv[2])
    runs = [trained(strategy_of(name), folder, resumed) for resumed in (False, True)]
    sys.stdout.write(f"RESULT {json.dumps(runs)}\n")
    end()


if __name__ == "__main__":
    main()
