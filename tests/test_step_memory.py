"""The memory of a step beside weights, gradients and state: at most a few batches, by measurement."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from orthon import Dion, Dion2, Dion3, Muon, NorMuon
from orthon.explain.temporaries import Temporaries
from tests.support.sampling import crossed


def extra_memory(shapes: list[tuple[int, int]], make: Any = Dion, **options: Any) -> int:
    """Return the most bytes that a step holds beside weights, gradients and state."""
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = make(params, **options)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    with Temporaries() as temporaries:
        optimizer.step()
    return temporaries.bytes


@pytest.mark.parametrize(
    ("right_factor", "rank_fraction", "shape"),
    crossed(
        ["normalize", "orthonormalize", "polar"], [1 / 16, 1 / 4, 1 / 2], [(128, 384), (384, 128), (256, 256)], every=2
    ),
)
def test_extra_memory_is_at_most_three_batches(shape: tuple[int, int], rank_fraction: float, right_factor: str) -> None:
    extra = extra_memory([shape] * 4, rank_fraction=rank_fraction, right_factor=right_factor)
    batch = 4 * 4 * math.prod(shape)
    assert extra <= 3 * batch, f"{extra / batch:.2f} batches"


@pytest.mark.parametrize(("options", "most"), [({}, 3.3), (Dion.PAPER, 3)])
def test_extra_memory_at_full_rank_is_at_most_three_of_the_largest_batch(options: dict[str, Any], most: float) -> None:
    """Square matrices alone take four, or six with QR of R: each of the factors is as large as the matrix."""
    d = 96
    shapes = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)] * 4  # of GPT-2
    extra = extra_memory(shapes, rank_fraction=1.0, **options)
    largest = 4 * 4 * 4 * d * d
    assert extra <= most * largest, f"{extra / largest:.2f} batches"


# In batches of float32. A polar factor in bfloat16 takes half of one for the matrix, and for square matrices four more
# of the size of a Gram matrix; in float32, on CPUs without products of bfloat16, twice that. Dion2 does so with the
# selected rows alone. (Where that is more than two, batches have fewer matrices: `test_temporaries.py`.)
MEMORY = [
    (Muon, {}, torch.bfloat16, 2.51),
    (Muon, {"nesterov": False}, torch.bfloat16, 2.51),
    (Muon, {}, torch.float32, 5.01),
    (NorMuon, {}, torch.bfloat16, 2.51),
    (NorMuon, {}, torch.float32, 5.01),
    (Dion2, {}, torch.bfloat16, 1.25),
    (Dion2, {}, torch.float32, 1.25),
    (Dion2, {"cautious_weight_decay": True}, torch.float32, 2),
    (Dion3, {}, torch.bfloat16, 1.25),
    (Dion3, {}, torch.float32, 1.25),
]


@pytest.mark.parametrize(
    ("make", "options", "dtype", "batches", "shape"),
    crossed(MEMORY, [(256, 768), (768, 256), (512, 512)], every=3),
)
def test_extra_memory_of_polar_factors(
    make: Any,
    options: dict[str, Any],
    dtype: torch.dtype,
    batches: float,
    shape: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orthon.algorithms.whole_matrix.polar_dtype", lambda *_: dtype)
    extra = extra_memory([shape] * 4, make, **options)
    batch = 4 * 4 * math.prod(shape)
    assert extra <= batches * batch, f"{make.__name__}, {options}, {dtype}: {extra / batch:.2f} batches"
