"""A vision transformer and a convolutional net learn to tell four kinds of stripes apart, each with Dion.

Kernels of a convolution (out, in, h, w) are read as matrices out × in·h·w. Patch embeddings and heads go to AdamW.

Run: python examples/vision.py
"""

from math import pi

import torch
from torch import Tensor, nn

import orthon

SIZE, PATCH, WIDTH, CLASSES, STEPS, BATCH = 16, 4, 64, 4, 80, 32


class VisionTransformer(nn.Module):
    """Patches as tokens, two layers, and the mean of all tokens for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.02 * torch.randn((SIZE // PATCH) ** 2, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.layers(tokens).mean(1))


def convolutional_net() -> nn.Module:
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, CLASSES))


def batch() -> tuple[Tensor, Tensor]:
    """Return noisy stripes in four directions with random phase, (BATCH, 1, SIZE, SIZE), and the directions."""
    kinds = torch.randint(CLASSES, (BATCH,))
    angle, phase = (kinds * pi / CLASSES)[:, None, None], 2 * pi * torch.rand(BATCH, 1, 1)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    stripes = (x * angle.cos() + y * angle.sin() + phase).sin()
    return (stripes + torch.randn(BATCH, SIZE, SIZE))[:, None], kinds


torch.manual_seed(0)
for name, model in {"vision transformer": VisionTransformer(), "convolutional net": convolutional_net()}.items():
    optimizer = orthon.Dion.for_model(model, lr=0.02)
    print(orthon.explain(optimizer))
    for step in range(STEPS + 1):
        images, kinds = batch()
        loss = nn.functional.cross_entropy(model(images), kinds)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"{name}, step {step}: loss {loss.item():.3f}")
