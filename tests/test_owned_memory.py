"""The memory that owners of matrices take in a wave: counted on fake ranks, and as the kinds of work estimate it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import orthon
from orthon.algorithms.dion import PAPER
from orthon.explain.temporaries import Temporaries
from orthon.linalg.device import meta_stands_for
from tests.support.counted_run import CUDA, CountedRun
from tests.support.llama import Layers
from tests.support.many_ranks import divided, fake_ranks
from tests.support.sampling import crossed

RANKS = 8
TALL, WIDE, SQUARE = (832, 256), (256, 832), (256, 256)
BF16, F32 = torch.bfloat16, torch.float32
DION: dict[str, Any] = {**PAPER, "route": "owners", "rank_fraction": 1 / 4}
NEW: dict[str, Any] = {"tail": 0.7, "right_factor": "orthonormalize", "residual_momentum": None, "nesterov": True}
MUON: dict[str, Any] = {"polar_route": "owners"}


def taken(
    name: str,
    options: dict[str, Any],
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    matrix: str = "w",
    mesh: tuple[int, int] = (RANKS, 1),
    each: int = 1,
    device: torch.device = CUDA,
) -> tuple[float, float]:
    """Return the most bytes that a rank takes in a wave where all ranks own as many matrices, and the estimate.

    Args:
        name: of the optimizer.
        options: of it.
        shape: of the matrices.
        dtype: of their weights.
        matrix: its name in the model, which tells how an axis "tp" cuts it.
        mesh: the sizes of its axes.
        each: how many matrices a rank owns.
        device: for which meta stands.
    """
    with fake_ranks(RANKS, 5):
        axes = {axis: size for axis, size in zip(("fsdp", "tp"), mesh, strict=True) if size > 1}
        model = divided(axes, Layers({matrix: shape[::-1]}, each * RANKS), dtype=dtype)
        named = [(key, param) for key, param in model.named_parameters() if key.startswith("layers")]
        step = CountedRun(getattr(orthon, name)(named, machine="h100", **options))
        ((wave,),) = step.sets
        (batch,) = wave
        assert batch.route == "owners"
        assert batch.owners == sorted(list(range(RANKS)) * each)
        member, layout = batch.pieces[0].member, batch.pieces[0].layout
        with torch.no_grad(), meta_stands_for(device):
            told = member.rule.work.owned_bytes(replace(layout, device=device), member.group, dtype)
        step.make(device)  # makes the state
        with Temporaries() as temporaries:
            step.make(device)
    return float(temporaries.bytes), each * told


# In bytes of a matrix: M, the update and Q go while others come, 2·(1 + 1 + 1/4) at rank 1/4 of a square one, beside
# P and Q. Without feedback M does not go. A polar factor takes two matrices, and seven Gram matrices or three. Dion2
# takes a quarter of that, where it does not spread columns over the weights.
MOST = [
    ("Dion", DION, TALL, BF16, 4.85),
    ("Dion", DION, WIDE, BF16, 4.85),
    ("Dion", DION, SQUARE, BF16, 5.05),
    ("Dion", DION, TALL, F32, 4.85),
    ("Dion", DION, SQUARE, F32, 5.05),
    ("Dion", {**DION, "state_dtype": F32}, TALL, BF16, 7.7),
    ("Dion", {**DION, **NEW}, TALL, BF16, 3.8),
    ("Dion", {**DION, **NEW}, SQUARE, F32, 3.35),
    ("Muon", MUON, TALL, BF16, 4.2),
    ("Muon", MUON, SQUARE, BF16, 5.05),
    ("NorMuon", MUON, WIDE, F32, 2.1),
    ("Dion2", {}, WIDE, BF16, 0.6),
    ("Dion2", {}, SQUARE, F32, 0.37),
    ("Dion3", {}, WIDE, BF16, 1.05),
]


@pytest.mark.parametrize(("name", "options", "shape", "dtype", "most"), MOST)
def test_owners_take_no_more_than_they_need(
    name: str, options: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype, most: float
) -> None:
    found, _ = taken(name, options, shape, dtype)
    matrices = found / (math.prod(shape) * dtype.itemsize)
    assert matrices <= most, f"{matrices:.2f} matrices"


KINDS = [
    *(("Dion", {**DION, "rank_fraction": f, "right_factor": right})
      for f in (1 / 16, 1 / 4, 1 / 2, 1.0) for right in ("normalize", "orthonormalize", "polar")),
    ("Dion", {**DION, "product_dtype": F32}),
    ("Dion", {**DION, "product_dtype": BF16}),
    ("Dion", {**DION, "state_dtype": F32}),
    ("Dion", {**DION, "orthonormal_side": "long"}),
    ("Dion", {**DION, "nonfinite": "skip"}),
    ("Dion", {**DION, "power_iterations": 2}),
    ("Dion", {**DION, "precision": "float32"}),
    *(("Dion", {**DION, **NEW, "rank_fraction": f}) for f in (1 / 16, 1 / 4, 1.0)),
    ("Dion", {**DION, **NEW, "right_factor": "normalize"}),
    ("Dion", {**DION, **NEW, "product_dtype": F32}),
    ("Dion", {**DION, **NEW, "state_dtype": F32}),
    ("Dion", {**DION, "tail": 0.7}),
    ("Dion", {**DION, "residual_momentum": None}),
    ("Muon", MUON),
    ("Muon", {**MUON, "polar_dtype": F32}),
    ("Muon", {**MUON, "polar": "svd"}),
    ("NorMuon", MUON),
    ("Dion2", {}),
    ("Dion2", {"selection": "local"}),
    ("Dion2", {"selection": "random"}),
    ("Dion3", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "shape", "dtype", "how"),
    [
        *crossed(KINDS, [TALL, WIDE, SQUARE], [BF16, F32], [{}, {"each": 3}], every=2),
        *crossed(KINDS, [TALL, WIDE], [BF16], [{"mesh": (4, 2), "matrix": m} for m in ("up", "down")], every=3),
    ],
)
def test_what_owners_take_is_what_bounds_the_waves(
    name: str, options: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype, how: dict[str, Any]
) -> None:
    found, told = taken(name, options, shape, dtype, **how)
    assert 0.75 * told <= found <= 1.25 * told, f"{found / told:.2f} of the estimate"


@pytest.mark.parametrize("right_factor", ["normalize", "orthonormalize", "polar"])
@pytest.mark.parametrize("rank_fraction", [1 / 4, 1.0])
@pytest.mark.parametrize("dtype", [BF16, F32, torch.float64])
def test_what_owners_take_on_a_cpu(rank_fraction: float, right_factor: str, dtype: torch.dtype) -> None:
    options = {**DION, "rank_fraction": rank_fraction, "right_factor": right_factor}
    found, told = taken("Dion", options, SQUARE, dtype, device=torch.device("cpu"))
    assert 0.75 * told <= found <= 1.25 * told, f"{found / told:.2f} of the estimate"
