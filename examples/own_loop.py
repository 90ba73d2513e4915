"""Your own loop: a small transformer learns Python's source, byte by byte. It needs nothing but PyTorch and Orthon.

Run: python examples/own_loop.py
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import orthon

STEPS, BATCH, LENGTH, WIDTH = 100, 16, 64, 96
TEXT = torch.tensor(list(Path(argparse.__file__).read_bytes()))


class Transformer(nn.Module):
    """Tells each byte from those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        x = self.embedding(tokens) + self.position.weight
        return self.head(self.layers(x, mask, is_causal=True))


def batch() -> tuple[Tensor, Tensor]:
    """Return random pieces of the text, and the same one byte later."""
    starts = torch.randint(len(TEXT) - LENGTH, (BATCH, 1))
    pieces = TEXT[starts + torch.arange(LENGTH + 1)]
    return pieces[:, :-1], pieces[:, 1:]


torch.manual_seed(0)
model = Transformer()
optimizer = orthon.Dion.for_model(model, lr=0.02)  # one optimizer: Dion for matrices, AdamW for the rest
print(orthon.explain(optimizer))  # which parameter goes where, and why
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)

for step in range(1, STEPS + 1):
    tokens, targets = batch()
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step == 1 or step % 20 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
