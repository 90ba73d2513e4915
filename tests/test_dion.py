"""What belongs to Dion alone."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from orthon import Dion
from orthon.testing.gradients import KINDS, sequence
from tests.rules_table import SHAPES
from tests.support.references import run

# Without a tail, and what an update leaves out stays.
FEEDBACK: dict[str, Any] = {"tail": 0.0, "residual_momentum": 1.0, "nesterov": False}


def test_large_and_small_weights_take_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threshold in (0, 1 << 40):
        monkeypatch.setattr("orthon.algorithms.weights.LARGE", threshold)
        gradients = sequence("full_rank", 12, 7, 3)
        results.append(run("dion", gradients, {}).found)
    torch.testing.assert_close(*results, rtol=0, atol=1e-14)


def test_a_direction_that_vanished_comes_back() -> None:
    """After steps with gradients of rank 1, a gradient of full rank moves the weight in all directions."""
    param = nn.Parameter(torch.zeros(16, 16, dtype=torch.float64))
    optimizer = Dion([param], rank_fraction=1.0, momentum=0.5, **FEEDBACK)
    for gradient in sequence("rank_1", 16, 16, 1) * 6:
        param.grad = gradient
        optimizer.step()
    before = param.detach().clone()
    param.grad = sequence("full_rank", 16, 16, 1)[0]
    optimizer.step()
    update = param.detach() - before
    assert torch.linalg.matrix_rank(update, rtol=1e-6) == 16


@pytest.mark.parametrize("right_factor", ["orthonormalize", "polar"])
def test_the_orthonormalized_right_factor_has_operator_norm_1(right_factor: str) -> None:
    for shape in SHAPES.values():
        options = {"right_factor": right_factor, "tail": 0.0, "weight_decay": 0.0, "lr": 1.0, "adjust_lr_fn": "none"}
        param = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        optimizer = Dion([param], rank_fraction=0.5, **options)
        param.grad = sequence("full_rank", *shape, 1)[0]
        optimizer.step()
        norm = torch.linalg.matrix_norm(param.detach(), ord=2)
        assert abs(norm - 1) < 1e-12, f"{shape}: {norm}"


def test_many_power_iterations_reach_the_polar_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    gradient = U @ torch.diag(torch.logspace(0, -3, 12, dtype=torch.float64)) @ V.T
    for right_factor in ("normalize", "orthonormalize", "polar"):
        param = nn.Parameter(torch.zeros(12, 12, dtype=torch.float64))
        optimizer = Dion(
            [param],
            lr=1.0,
            weight_decay=0.0,
            rank_fraction=1.0,
            power_iterations=200,
            right_factor=right_factor,
            **FEEDBACK,
        )
        param.grad = gradient.clone()
        optimizer.step()
        error = (param.detach() + U @ V.T).norm()
        assert error < 1e-8, f"{right_factor}: distance to the polar factor {error:.1e}"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_polar_right_factor_of_full_rank_gives_the_polar_factor_of_momentum(shape: str) -> None:
    """In each step, and whatever Q was before: P Qᵀ = P (Pᵀ M) (…)^(−1/2), and P is a basis of the whole space."""
    param, rate = nn.Parameter(torch.zeros(SHAPES[shape], dtype=torch.float64)), 0.75
    optimizer = Dion(
        [param],
        lr=1.0,
        weight_decay=0.0,
        adjust_lr_fn="none",
        rank_fraction=1.0,
        momentum=rate,
        right_factor="polar",
        **FEEDBACK,
    )
    momentum = torch.zeros_like(param)
    for gradient in sequence("full_rank", *SHAPES[shape], 4):
        before, param.grad = param.detach().clone(), gradient
        optimizer.step()
        momentum = momentum + gradient
        W, _, Vt = torch.linalg.svd(momentum, full_matrices=False)
        assert (before - param.detach() - W @ Vt).abs().max() < 1e-11
        momentum = rate * momentum
        assert (optimizer.state[param]["momentum"] - momentum).abs().max() < 1e-11


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    rank_fraction=st.floats(0.01, 1),
    multiple=st.integers(1, 4),
    kind=st.sampled_from(sorted(KINDS)),
    side=st.sampled_from(["short", "long"]),
    right_factor=st.sampled_from(["normalize", "orthonormalize", "polar"]),
    seed=st.integers(0, 1000),
)
def test_any_small_matrix(
    m: int, n: int, rank_fraction: float, multiple: int, kind: str, side: str, right_factor: str, seed: int
) -> None:
    options: dict[str, Any] = {**FEEDBACK, "orthonormal_side": side, "right_factor": right_factor, "weight_decay": 0.0}
    param = nn.Parameter(torch.zeros(m, n))
    optimizer = Dion([param], lr=1.0, rank_fraction=rank_fraction, rank_multiple_of=multiple, **options)
    rank = min(m, n, multiple * math.ceil(rank_fraction * min(m, n) / multiple))
    for gradient in sequence(kind, m, n, 3, seed):
        before = param.detach().clone()
        param.grad = gradient.float()
        optimizer.step()
        update = (param.detach() - before) / math.sqrt(m / n)
        assert optimizer.state[param]["Q"].shape[1] == rank
        # P has orthonormal columns and Q unit ones: the squared Frobenius norm is the number of live directions.
        live = update.square().sum().item()
        assert live <= rank * 1.001
        assert abs(live - round(live)) < 1e-2, f"update of squared norm {live}"
        assert torch.linalg.matrix_norm(update, ord=2) <= (rank**0.5 if right_factor == "normalize" else 1) + 1e-3
