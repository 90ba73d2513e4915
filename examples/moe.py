"""Mixture of experts: each expert is a matrix with an update of its own.

Experts of transformers' models are found. For a module of your own, as here, an override says how the weights lie.

Run: python examples/moe.py
"""

import torch
from torch import Tensor, nn

import orthon

WIDTH, HIDDEN, EXPERTS, STEPS, BATCH = 32, 64, 4, 120, 256


class Experts(nn.Module):
    """A router sends each row to the two experts that it rates highest."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / WIDTH**0.5)  # (experts, in, out)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.router(x).topk(2)
        weights = torch.zeros(len(x), EXPERTS).scatter(1, chosen, scores.softmax(-1))
        hidden = nn.functional.gelu(torch.einsum("bi,eio->ebo", x, self.up))
        return torch.einsum("ebh,eho,be->bo", hidden, self.down, weights)


class Model(nn.Module):
    """Two layers with experts, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Experts(), Experts()])
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layers[0](x)
        return self.head(x + self.layers[1](x))


torch.manual_seed(0)
model, shifts = Model(), torch.arange(4)
stacked = {"algorithm": "dion", "view": orthon.MatrixView(transposed=True)}  # stored as (experts, in, out)
optimizer = orthon.Dion.for_model(model, lr=0.02, overrides={"*.up": stacked, "*.down": stacked})
print(orthon.explain(optimizer))

for step in range(1, STEPS + 1):
    x = torch.randn(BATCH, WIDTH)
    kinds = x[:, :2].gt(0).long() @ torch.tensor([1, 2])  # what is to be done depends on two signs
    columns = (torch.arange(WIDTH) + shifts[kinds][:, None]) % WIDTH
    loss = (model(x) - x.gather(1, columns)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step == 1 or step % 20 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
