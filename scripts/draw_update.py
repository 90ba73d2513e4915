"""Draw docs/dion-update.png: the singular values of a momentum, and of what each optimizer makes of it.

Run: python -m scripts.draw_update
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import orthon

PICTURE = Path(__file__).parents[1] / "docs" / "dion-update.png"
SHAPE = ROWS, COLS = 128, 448
STEPS = 40
MAKERS: Mapping[str, tuple[type[orthon.MixedOptimizer], dict[str, Any]]] = {
    "Muon": (orthon.Muon, {"polar": "svd"}),
    "Dion 1/4": (orthon.Dion, {}),
    "Dion 1/16": (orthon.Dion, {"rank_fraction": 1 / 16}),
    "Dion 1/4 of the paper": (orthon.Dion, dict(orthon.Dion.PAPER)),
}


def gradients() -> Iterator[Tensor]:
    """Yield gradients (m, n): in each the same matrix, whose singular values fall like 1/k, and fresh noise."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(ROWS, ROWS, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(COLS, ROWS, generator=generator))
    signal = left @ torch.diag(1 / torch.arange(1, ROWS + 1)) @ right.T
    for _ in range(STEPS):
        yield signal + torch.randn(SHAPE, generator=generator) * 0.01


def spectra(name: str) -> tuple[Tensor, Tensor]:
    """Return the singular values of the last momentum, and of the last update over the learning rate."""
    make, options = MAKERS[name]
    weight = nn.Parameter(torch.zeros(SHAPE))
    optimizer = make([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn="none", **options)  # type: ignore[call-arg]
    for gradient in gradients():
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
    momentum = optimizer.state[weight]["momentum"]
    return torch.linalg.svdvals(momentum), torch.linalg.svdvals(weight.detach() - before)


def draw() -> None:
    """Draw the picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    places = torch.arange(1, ROWS + 1)
    momentum, _ = spectra("Muon")
    left.semilogy(places, momentum / momentum[0], color="black")
    left.set(title="momentum", xlabel="singular value, largest first", ylabel="of the largest")
    for name in MAKERS:
        right.plot(places, spectra(name)[1], label=name)
    right.set(title="update / lr", xlabel="singular value, largest first", ylim=(0, None))
    right.legend(frameon=False)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    draw()
