"""Accelerate: prepare model and optimizer as usual; here with accumulated and clipped gradients, and a saved state.

On several processes, name them by replicas="world", since the optimizer is made before Accelerate wraps the model.

Run: python examples/accelerate_loop.py
"""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import orthon

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32), nn.GELU(), nn.Linear(32, 32))
optimizer = orthon.Dion.for_model(model, lr=0.02, replicas="world" if accelerator.num_processes > 1 else None)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6 * 16)
x = torch.randn(1024, 32)
loader = DataLoader(TensorDataset(x, x.roll(1, dims=1)), batch_size=32)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)


def train(epochs: range) -> None:
    for epoch in epochs:
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), targets)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}")


train(range(3))
folder = accelerator.save_state(tempfile.mkdtemp())
train(range(3, 6))
accelerator.print("and once more from the saved state:")
accelerator.load_state(folder)
train(range(3, 6))
