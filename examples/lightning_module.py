"""Lightning: `configure_optimizers` returns one optimizer, with all groups. So training stays automatic.

Run: python examples/lightning_module.py
"""

import tempfile
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import orthon

EPOCHS = 10


class Classifier(LightningModule):
    """Tells which of 8 random centers a point is near to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
        self.losses: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, kinds = batch
        loss = nn.functional.cross_entropy(self.net(points), kinds)
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        print(f"epoch {self.current_epoch}: loss {torch.stack(self.losses).mean():.3f}")
        self.losses.clear()

    def configure_optimizers(self) -> Any:
        optimizer = orthon.Dion.for_model(self, lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


torch.manual_seed(0)
kinds = torch.randint(8, (1024,))
points = torch.randn(8, 32)[kinds] + 2 * torch.randn(1024, 32)
folder = tempfile.mkdtemp()
trainer = Trainer(
    max_epochs=EPOCHS,
    accelerator="cpu",
    precision="bf16-mixed",
    gradient_clip_val=1.0,
    callbacks=[LearningRateMonitor("epoch")],  # one rate for each group: "lr-Dion/hidden matrices" and so on
    logger=CSVLogger(folder),
    log_every_n_steps=8,
    default_root_dir=folder,
    enable_progress_bar=False,
)
trainer.fit(Classifier(), DataLoader(TensorDataset(points, kinds), batch_size=64, shuffle=True))
