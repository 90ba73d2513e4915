"""Polar factors against exact ones, in every dtype, by every method and route."""

import importlib.util
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as torch_newton_schulz

from orthon.linalg.polar import METHODS, ROUTES, polar, polar_dtype, polar_flops
from orthon.linalg.polynomials import NEWTON_SCHULZ, POLAR_EXPRESS

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SHAPES = {"square": (64, 64), "wide": (48, 192), "tall": (192, 48)}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def with_singular_values(m: int, n: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix, and its polar factor over the singular values that are not zero."""
    W, V = (torch.linalg.qr(randn(side, len(values), seed=side)).Q for side in (m, n))
    return W * values @ V.T, W * values.sign() @ V.T


def log_spaced(m: int, n: int, condition: float) -> tuple[Tensor, Tensor]:
    return with_singular_values(m, n, torch.logspace(0, -math.log10(condition), min(m, n), dtype=F64))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, case: object) -> None:
    assert actual.shape == expected.shape, case
    error = (actual.double() - expected.double()).abs().max() if actual.numel() else 0.0
    assert error <= tolerance, f"{case}: off by {error:.1e}"


# How close to 1 the iteration brings singular values, by its steps. In exact arithmetic, 5 of them leave 0.124 of those
# that are 1e-3 of the bound; with a condition of 1000 they are less than that, and take 7.
@pytest.mark.parametrize("route", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(256, 256), (128, 512), (512, 128)], ids=str)
def test_singular_values_of_polar_in_bfloat16(shape: tuple[int, int], route: str) -> None:
    for condition, steps, low, high in [
        (1, 5, 0.85, 1.16),
        (10, 5, 0.85, 1.16),
        (100, 5, 0.85, 1.16),
        (1, 6, 0.97, 1.03),
        (10, 6, 0.97, 1.03),
        (100, 6, 0.97, 1.03),
        (1000, 7, 0.97, 1.03),
    ]:
        U, _ = log_spaced(*shape, condition)
        X = polar(U.float(), steps=steps, route=route, dtype=BF16)
        S = torch.linalg.svdvals(X.double())
        case = f"condition {condition}, {steps} steps: singular values from {S.min():.3f} to {S.max():.3f}"
        assert X.dtype == BF16
        assert S.min() >= low, case
        assert S.max() <= high, case


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_is_the_exact_factor(shape: str) -> None:
    for condition, (dtype, tolerance), route, method in product(
        (100, 1000), ((F32, 1e-5), (F64, 1e-10)), ROUTES, ("polar_express", "svd")
    ):
        U, expected = log_spaced(*SHAPES[shape], condition)
        X = polar(U.to(dtype), method=method, steps=9, route=route, dtype=dtype)
        # What float32 cannot tell of U itself, amplified by its condition.
        allowed = 5 * tolerance if method == "svd" and dtype == F32 else tolerance
        assert_near(X, expected, allowed, (condition, dtype, route, method))


@pytest.mark.parametrize(("method", "route", "dtype"), list(product(METHODS, ROUTES, (BF16, F32, F64))), ids=str)
def test_polar_of_zero_is_exactly_zero(method: str, route: str, dtype: torch.dtype) -> None:
    for shape in ((0, 3, 4), (3, 0), (2, 4, 0), (2, 4, 6), (6, 2), (1, 1)):
        X = polar(torch.zeros(shape), method=method, route=route, dtype=dtype)
        assert X.shape == shape
        assert not X.any(), shape


def _zero_rows(m: int, n: int) -> Tensor:
    U = randn(m, n)
    U[::2] = 0
    return U


def _duplicate_rows(m: int, n: int) -> Tensor:
    U = randn(m, n)
    U[1::2] = U[: m // 2 * 2 : 2]
    return U


DEFICIENT = {
    "zero rows": _zero_rows,
    "duplicate rows": _duplicate_rows,
    "rank 1": lambda m, n: randn(m, 1) @ randn(1, n, seed=1),
    "half the rank": lambda m, n: randn(m, min(m, n) // 2) @ randn(min(m, n) // 2, n, seed=1),
    "all ones": lambda m, n: torch.ones(m, n, dtype=F64),
}


def null_part(U: Tensor, X: Tensor) -> float:
    """Return the largest singular value of X outside of the rows and columns that U spans."""
    W, S, Vt = torch.linalg.svd(U.double(), full_matrices=False)
    rank = int((S / S[0] > 1e-10).sum())
    W, V = W[:, :rank], Vt[:rank].T
    left = X - W @ (W.T @ X)
    return float(torch.linalg.matrix_norm(left - left @ V @ V.T, 2))


# What rounding of U and X leaves there is multiplied by the slopes: by 1e3 in 5 steps, by 1e5 in 12. Measured: at most
# 6e-5 and 5e-3 in float32; in bfloat16 0.9 and 1, where the noise is as large as the singular values may be.
@pytest.mark.parametrize("route", ["direct", "gram"])
@pytest.mark.parametrize("name", DEFICIENT)
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_in_directions_that_are_not_there(shape: str, name: str, route: str) -> None:
    U = DEFICIENT[name](*SHAPES[shape])
    exact = polar(U, method="svd")
    for dtype, steps, bound in (
        (F64, 5, 1e-11),
        (F64, 12, 1e-9),
        (F32, 5, 2e-4),
        (F32, 12, 2e-2),
        (BF16, 5, 1.0),
        (BF16, 12, 1.05),
    ):
        X = polar(U.to(dtype), steps=steps, route=route, dtype=dtype).double()
        case = f"{dtype}, {steps} steps"
        assert X.isfinite().all(), case
        assert torch.linalg.matrix_norm(X, 2) < 1.2, case
        null = null_part(U, X)
        assert null <= bound, f"{case}: {null:.1e} in null directions"
        if dtype != BF16 and steps == 12:
            assert_near(X, exact, 5e-3 if dtype == F32 else 1e-9, case)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
def test_scale_does_not_change_the_polar_factor(method: str, dtype: torch.dtype) -> None:
    U = randn(3, 24, 40).float()
    for route, power in product(ROUTES, (-100, -43, -17, 17, 43, 83)):
        # By powers of two, which leave the bits of U alone.
        expected, actual = (
            polar(U * scale, method=method, steps=8, route=route, dtype=dtype) for scale in (1.0, 2.0**power)
        )
        assert_near(actual, expected, 4e-2 if dtype == BF16 else 1e-5, (route, power))
    for route, scale in product(ROUTES, (1e-30, 1e25)):
        if dtype != BF16:
            expected, actual = (polar(x, method=method, route=route, dtype=dtype) for x in (U, U * scale))
            assert_near(actual, expected, 1e-4, (route, scale))


@pytest.mark.parametrize("storage", [F16, BF16, F32, F64], ids=str)
def test_polar_leaves_its_input_alone(storage: torch.dtype) -> None:
    for method, route, dtype in product(METHODS, ROUTES, (None, BF16, F32)):
        U = randn(2, 12, 20).to(storage)
        keep = U.clone()
        X = polar(U, method=method, route=route, dtype=dtype)
        assert torch.equal(U, keep), (method, route, dtype)
        expected = dtype or polar_dtype(storage, U.device, U.shape[-2:])
        if method == "svd" and expected == BF16:
            expected = F32
        assert X.dtype == expected
        assert X.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_polar_of_leading_dims_is_that_of_each_matrix(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    U = randn(2, 3, 8, 20)
    for route, limit in product(ROUTES, (256 << 20, 1, 5000)):  # all at once, each alone, and some at a time
        monkeypatch.setattr(sys.modules["orthon.linalg.polar"], "TEMPORARY_BYTES", limit)
        X = polar(U, method=method, route=route)
        for i, j in product(range(2), range(3)):
            assert_near(X[i, j], polar(U[i, j], method=method, route=route), 1e-12, (route, limit, i, j))


@pytest.mark.parametrize("method", METHODS)
def test_temporaries_of_polar_stay_within_their_limit(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["orthon.linalg.polar"]
    monkeypatch.setattr(module, "TEMPORARY_BYTES", 1 << 20)
    name = "by_svd" if method == "svd" else "iterate"
    inner, parts = getattr(module, name), []
    monkeypatch.setattr(module, name, lambda U, *args, **kwargs: (parts.append(len(U)), inner(U, *args, **kwargs))[1])
    polar(randn(100, 16, 32), method=method)
    assert sum(parts) == 100
    assert len(parts) > 1
    assert max(parts) * (16 * 32 + 5 * 16 * 16) * 8 <= 1 << 20


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    seed=st.integers(0, 1000),
    method=st.sampled_from(METHODS),
    route=st.sampled_from(ROUTES),
)
def test_polar_commutes_with_transposition_and_permutation(m: int, n: int, seed: int, method: str, route: str) -> None:
    U = randn(m, n, seed=seed)
    X = polar(U, method=method, route=route)
    assert_near(polar(U.T, method=method, route=route), X.T, 1e-8, "transposed")
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    assert_near(polar(U[order], method=method, route=route), X[order], 1e-8, "permuted")
    assert_near(polar(-3 * U, method=method, route=route), -X, 1e-8, "negative")


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_is_that_of_torch(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    U = randn(*SHAPES[shape]).float()
    X = U.double() / torch.linalg.matrix_norm(U.double())
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = X @ X.T
        X = a * X + (b * gram + c * gram @ gram) @ X
    monkeypatch.setattr(Tensor, "bfloat16", lambda x: x.clone())  # torch has it in bfloat16 alone
    torchs = torch_newton_schulz(U, NEWTON_SCHULZ, 5, 1e-7)
    assert torchs.dtype == F32
    for route in ROUTES:
        actual = polar(U, method="newton_schulz", route=route, dtype=F32)
        assert_near(actual, X, 1e-5, route)
        assert_near(actual, torchs, 1e-5, route)
    bounded = polar(U, method="newton_schulz", dtype=BF16).double()
    S = torch.linalg.svdvals(bounded)
    assert S.max() < 1.3, S


def test_the_table_of_polynomials_is_the_scripts() -> None:
    path = Path(__file__).parents[1] / "scripts" / "polar_express.py"
    spec = importlib.util.spec_from_file_location("polar_express", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert tuple(script.table()) == POLAR_EXPRESS


def test_the_polynomials_are_the_best_ones() -> None:
    """Each step leaves errors as large above 1 as below."""
    x = torch.logspace(-3, 0, 20_000, dtype=F64)
    for i, (a, b, c) in enumerate(POLAR_EXPRESS):
        x = a * x + b * x**3 + c * x**5
        assert abs(x.min() + x.max() - 2) < 1e-6, f"step {i}: from {x.min()} to {x.max()}"
    assert_near(x, torch.ones_like(x), 1e-14, "after all")


def test_operations_of_polar() -> None:
    assert polar_flops(64, 64, steps=5, route="direct") == 5 * 6 * 64**3 + 2 * 64**3
    assert polar_flops(64, 256, steps=5) == polar_flops(256, 64, steps=5, route="gram")
    assert (
        polar_flops(64, 1024, route="gram")
        < polar_flops(64, 1024, route="direct")
        < polar_flops(64, 1024, method="svd") * 9
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "qr"}, "method should be one of polar_express, newton_schulz, svd, but is 'qr'"),
        ({"route": "long"}, "route should be one of auto, direct, gram, but is 'long'"),
        ({"steps": 0}, "steps should be at least 1, but is 0"),
        ({"dtype": F16}, "dtype should be bfloat16, float32 or float64, but is torch.float16"),
        ({"steps": 2.5}, "steps should be an integer, but is 2.5"),
        ({"steps": True}, "steps should be an integer, but is True"),
        (
            {"U": torch.ones(2, 2, dtype=torch.complex64)},
            "U should be a tensor in one of .*, but is in torch.complex64",
        ),
        ({"U": torch.ones(2, 2, dtype=torch.int64)}, "U should be a tensor in one of .*, but is in torch.int64"),
        ({"U": [[1.0]]}, "U should be a tensor in one of .*, but is a list"),
        ({"U": torch.ones(3)}, r"U should be a matrix or a batch of them \(..., m, n\), but has the shape \(3,\)"),
    ],
)
def test_what_polar_does_not_take(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        polar(**{"U": torch.ones(2, 2), **given})


def test_default_dtype_of_polar() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for storage in (F16, BF16, F32):
        assert polar_dtype(storage, cuda, (8, 8)) == BF16
        assert polar_dtype(storage, cpu, (8, 8)) == F32
        assert polar_dtype(storage, cpu, (256, 256)) in (BF16, F32)
    assert polar_dtype(F64, cuda, (8, 8)) == polar_dtype(F64, cpu, (8, 8)) == F64


SMALL = [(8, 24), (8, 32), (16, 48), (24, 96), (32, 96), (48, 144), (96, 32)]


# For these shapes "auto" is "gram".
@pytest.mark.parametrize(("shape", "route"), [*((shape, "gram") for shape in SMALL), (SMALL[0], "auto")], ids=str)
def test_small_matrices_in_16_bits_stay_near_one(shape: tuple[int, int], route: str) -> None:
    """Rounding does not average out in small Gram matrices: composed polynomials would give values up to 26."""
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(500, *shape, generator=generator)
    values = torch.linalg.svdvals(polar(U, dtype=torch.bfloat16, route=route).float())
    assert values.max() < 1.2
    assert values.min() > 0.8
