"""How large the tiles of a product are, and how exactly they are multiplied."""

from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Sizes of the tiles of a product: `side` × `side` of the result from pieces of `depth`."""

    side: int
    depth: int
    warps: int


def tiles(dtype: torch.dtype) -> Tiles:
    """Return tiles that fit into registers and shared memory: accumulators are float32, operands of `dtype`."""
    return Tiles(128, 64, 8) if dtype.itemsize == 2 else Tiles(64, 32, 4)


def dot_precision() -> str:
    """Return how float32 tiles are multiplied: as torch would, by its setting."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
