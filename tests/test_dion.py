"""Dion against its float64 reference."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orthon import Dion
from orthon.testing.gradients import KINDS, sequence
from tests import reference
from tests.support.closeness import assert_close

STEPS = 5
SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (16, 16), "one row": (1, 12), "one column": (12, 1)}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rank 1": {"rank_fraction": 0.01},
    "full rank": {"rank_fraction": 1.0},
    "orthonormalize": {"right_factor": "orthonormalize"},
    "long side": {"orthonormal_side": "long"},
    "long side, full rank, orthonormalize": {
        "orthonormal_side": "long",
        "rank_fraction": 1.0,
        "right_factor": "orthonormalize",
    },
    "three power iterations": {"power_iterations": 3, "rank_fraction": 0.5},
    "maximize": {"maximize": True},
    "no momentum": {"momentum": 0.0},
    "no decay, original": {"weight_decay": 0.0, "lr_scale": "original"},
    "much decay, match_rms_adamw": {"weight_decay": 0.5, "lr": 0.05, "lr_scale": "match_rms_adamw"},
    "unscaled": {"lr_scale": "none"},
    "cautious decay": {"cautious_weight_decay": True, "weight_decay": 0.5, "lr": 0.1},
}
# Without momentum, error feedback takes all of a rank-1 gradient out of M but for amplified rounding noise, which
# the next step cannot tell from a small gradient.
TOLERANCE_64 = {("no momentum", "rank_1"): 1e-2}
# In float32 a small direction beside one that is 10⁴ times larger is known to three digits.
TOLERANCE_32 = {"one_huge_singular_value": 2e-2, "uneven_rows": 2e-3}
REFERENCE_OPTIONS = set(reference.Dion.__dataclass_fields__)


def run(
    gradients: list[Tensor], *, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[reference.Dion, Tensor, dict[str, Tensor]]:
    """Run the reference and the package on the same gradients."""
    m, n = gradients[0].shape
    start = torch.randn(m, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    param = nn.Parameter(start.clone())
    optimizer = Dion([("w", param)], **options)
    Q = optimizer.members()[0].new_state()["Q"]
    expected = reference.Dion(start, Q, **{k: v for k, v in options.items() if k in REFERENCE_OPTIONS})
    for gradient in gradients:
        param.grad = gradient.to(dtype)
        expected.step(param.grad)
        optimizer.step()
    return expected, param.detach(), optimizer.state[param]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference_in_float64(shape: str, options: str, kind: str) -> None:
    gradients = sequence(kind, *SHAPES[shape], STEPS)
    expected, X, state = run(gradients, dtype=torch.float64, options=OPTIONS[options])
    case = f"{shape}, {options}, {kind}"
    tolerance = TOLERANCE_64.get((options, kind), 1e-10)
    assert_close(X, expected.X, tolerance, f"{case}: X")
    assert_close(state["momentum"], expected.M, tolerance, f"{case}: momentum", sum(gradients))
    if tolerance == 1e-10:
        assert_close(state["Q"], expected.Q, 1e-8, f"{case}: Q")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ["defaults", "full rank", "orthonormalize", "long side"])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference_in_float32(shape: str, options: str, kind: str) -> None:
    gradients = sequence(kind, *SHAPES[shape], STEPS)
    expected, X, state = run(gradients, dtype=torch.float32, options=OPTIONS[options])
    case = f"{shape}, {options}, {kind}"
    tolerance = TOLERANCE_32.get(kind, 1e-4)
    assert_close(X, expected.X, tolerance, f"{case}: X")
    assert_close(state["momentum"], expected.M, tolerance, f"{case}: momentum", sum(gradients))


@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_any_dtypes_of_weights_and_state(shape: str, dtype: torch.dtype, state_dtype: torch.dtype | None) -> None:
    options = {"rank_fraction": 0.5, "state_dtype": state_dtype, "lr": 0.1}
    gradients = [1e-3 * g for g in sequence("full_rank", *SHAPES[shape], STEPS)]
    expected, X, state = run(gradients, dtype=dtype, options=options)
    stored = state_dtype or dtype
    assert state["momentum"].dtype == state["Q"].dtype == stored
    assert X.dtype == dtype
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(stored).eps)
    moved = expected.X - torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # 16-bit factors turn by a few epsilon in every step, and each step starts from them.
    assert_close(X, expected.X, 20 * coarsest, f"{shape}, {dtype}, {state_dtype}: X", moved.abs() + X.double().abs())


def test_a_float16_state_saturates_instead_of_overflowing() -> None:
    param = nn.Parameter(torch.zeros(6, 6))
    optimizer = Dion([param], state_dtype=torch.float16)
    for _ in range(5):
        param.grad = torch.full((6, 6), 6e4)
        optimizer.step()
    assert optimizer.state[param]["momentum"].isfinite().all()
    assert param.isfinite().all()


def test_matrices_of_one_shape_are_updated_as_if_each_were_alone() -> None:
    starts = [torch.randn(8, 6, dtype=torch.float64) for _ in range(5)]
    together = [nn.Parameter(start.clone()) for start in starts]
    alone = [nn.Parameter(start.clone()) for start in starts]
    names = [f"layer {i}" for i in range(5)]
    optimizers = [Dion(zip(names, together, strict=True))] + [Dion([pair]) for pair in zip(names, alone, strict=True)]
    for step in range(4):
        for i, (a, b) in enumerate(zip(together, alone, strict=True)):
            # In step 2 some have no gradient, so that the batch is another one.
            a.grad = b.grad = None if step == 2 and i % 2 else torch.randn(8, 6, dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.step()
    for i, (a, b) in enumerate(zip(together, alone, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13, msg=lambda m, i=i: f"matrix {i}: {m}")


def test_large_and_small_weights_take_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threshold in (0, 1 << 40):
        monkeypatch.setattr("orthon.algorithms.batch.LARGE", threshold)
        gradients = sequence("full_rank", 12, 7, 3)
        results.append(run(gradients, dtype=torch.float64, options={})[1])
    torch.testing.assert_close(*results, rtol=0, atol=1e-14)


def test_the_same_update_for_gradients_of_any_scale() -> None:
    gradients = sequence("full_rank", 12, 20, 4)
    reference_X = run(gradients, dtype=torch.float32, options={})[1]
    for scale in (1e-30, 1e-10, 1e20):
        X = run([scale * g for g in gradients], dtype=torch.float32, options={})[1]
        torch.testing.assert_close(X, reference_X, rtol=1e-4, atol=1e-5, msg=lambda m, s=scale: f"scale {s}: {m}")


def test_a_zero_gradient_changes_nothing_but_by_decay() -> None:
    param = nn.Parameter(torch.randn(5, 4))
    before = param.detach().clone()
    optimizer = Dion([param], lr=0.1, weight_decay=0.0)
    for _ in range(2):
        param.grad = torch.zeros(5, 4)
        optimizer.step()
        Q = optimizer.state[param]["Q"].clone()
    assert torch.equal(param, before)
    assert torch.equal(optimizer.state[param]["Q"], Q)
    assert not optimizer.state[param]["momentum"].any()


def test_a_direction_that_vanished_comes_back() -> None:
    """After steps with gradients of rank 1, a gradient of full rank moves the weight in all directions."""
    param = nn.Parameter(torch.zeros(16, 16, dtype=torch.float64))
    optimizer = Dion([param], rank_fraction=1.0, momentum=0.5)
    for gradient in sequence("rank_1", 16, 16, 1) * 6:
        param.grad = gradient
        optimizer.step()
    before = param.detach().clone()
    param.grad = sequence("full_rank", 16, 16, 1)[0]
    optimizer.step()
    update = param.detach() - before
    assert torch.linalg.matrix_rank(update, rtol=1e-6) == 16


def test_the_orthonormalized_right_factor_has_operator_norm_1() -> None:
    for shape in SHAPES.values():
        options = {"right_factor": "orthonormalize", "weight_decay": 0.0, "lr": 1.0, "lr_scale": "none"}
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
    for right_factor in ("normalize", "orthonormalize"):
        param = nn.Parameter(torch.zeros(12, 12, dtype=torch.float64))
        optimizer = Dion(
            [param], lr=1.0, weight_decay=0.0, rank_fraction=1.0, power_iterations=200, right_factor=right_factor
        )
        param.grad = gradient.clone()
        optimizer.step()
        error = (param.detach() + U @ V.T).norm()
        assert error < 1e-8, f"{right_factor}: distance to the polar factor {error:.1e}"


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    rank_fraction=st.floats(0.01, 1),
    multiple=st.integers(1, 4),
    kind=st.sampled_from(sorted(KINDS)),
    side=st.sampled_from(["short", "long"]),
    right_factor=st.sampled_from(["normalize", "orthonormalize"]),
    seed=st.integers(0, 1000),
)
def test_any_small_matrix(
    m: int, n: int, rank_fraction: float, multiple: int, kind: str, side: str, right_factor: str, seed: int
) -> None:
    options = {"orthonormal_side": side, "right_factor": right_factor, "weight_decay": 0.0}
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
        assert torch.linalg.matrix_norm(update, ord=2) <= (1 if right_factor == "orthonormalize" else rank**0.5) + 1e-3
