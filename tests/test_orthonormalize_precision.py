"""How orthonormal columns are in each arithmetic of products. TF32 is imitated on the CPU, by rounding the operands."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion
from orthon.linalg import Columns, arithmetic, default_precision, orthonormalize
from orthon.linalg.arithmetic import gram_in_bf16x3, product_in_bf16x3, product_in_tf32
from orthon.linalg.precision import float32_products, full_precision
from orthon.testing.gradients import sequence
from tests.support.closeness import assert_close
from tests.support.hard_matrices import MATRICES, RANK, kahan, randn
from tests.support.references import run

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def ten_bits(x: Tensor, *, cut: bool) -> Tensor:
    """Return float32 numbers with 10 bits after the first, rounded to the nearest or cut off."""
    bits = x.contiguous().view(torch.int32)
    return ((bits if cut else bits + (1 << 12)) & ~((1 << 13) - 1)).view(F32)


@pytest.fixture(params=["rounded", "cut off"])
def tf32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def imitated(A: Tensor, B: Tensor) -> Tensor:
        with full_precision():
            return ten_bits(A, cut=request.param == "cut off") @ ten_bits(B, cut=request.param == "cut off")

    exact = arithmetic._ARITHMETICS["tf32"]
    assert exact.times is product_in_tf32
    replaced = replace(exact, gram=lambda B: imitated(B.mT, B), times=imitated)
    monkeypatch.setitem(arithmetic._ARITHMETICS, "tf32", replaced)


def error_of(columns: Columns) -> float:
    P, live = columns.vectors[0].double(), columns.live[0]
    assert P.isfinite().all()
    assert not P[:, ~live].any()
    return float((P.T @ P - torch.diag(live.double())).abs().max())


# How far PᵀP may be from the identity. `Arithmetic` promises 2⁻¹⁰ (2⁻⁹ if GPUs cut bits off), 2⁻¹⁵ and a few epsilon:
# these are less, as roundings go both ways.
BOUND = {"tf32": 5e-4, "bf16x3": 8e-6, "float32": 4e-6}
# Singular values of these matrices fall gradually below the noise, so that some columns are barely more than noise. In
# the last pass, such a column may lie mostly along a column before it: as (c, s) in their plane, with s > 1/2. The
# inverse triangle then makes an error e of the Gram matrix (1 + c²)/s² < 7 times as large, where e is at most 2⁻¹⁵. The
# last bits of sums decide which columns these are and how large s is, and so does the processor: with the entries of B
# changed by an epsilon at random, the error in bf16x3 is between 2e-6 and 2.3e-5.
NEAR_NOISE = {"condition 1e+05", "condition 1e+07", "condition 1e+10", "nearly parallel", "Hilbert", "Vandermonde"}
BOUND_NEAR_NOISE = {**BOUND, "bf16x3": 7 * 2.0**-15}
# How much of a unit column P may leave out: what counts as noise, amplified by the columns before it.
LEFT_OUT = {("tf32", F32): 2e-2, ("bf16x3", F32): 1e-3, ("float32", F32): 2e-4}


def check(name: str, dtype: torch.dtype, precision: str) -> None:
    for shape in ((256, 64), (48, 48), (300, 1), (1, 1)):
        B = MATRICES[name](*shape).to(dtype)
        columns = orthonormalize(B.clone()[None], precision=precision)
        error, live, case = error_of(columns), int(columns.live.sum()), f"{shape}, {precision}"
        bound = (BOUND_NEAR_NOISE if name in NEAR_NOISE else BOUND)[precision]
        assert error <= bound, f"{case}: PᵀP is off by {error:.1e}"
        # Rounding of B itself to bfloat16 makes more directions of this one.
        if name in RANK and (name, dtype) != ("half the rank", BF16):
            assert live == RANK[name](shape[1]), f"{case}: {live} of {shape[1]} columns live"
        if name in ("random", "condition 1e+02", "tiny", "huge") and shape[0] > shape[1]:
            assert live == shape[1], f"{case}: {live} of {shape[1]} columns live"
        if name not in ("Hilbert", "Vandermonde"):
            unit = B.double() / torch.linalg.vector_norm(B.double(), dim=0).clamp_min(1e-300)
            P = columns.vectors[0].double()
            left_out = torch.linalg.vector_norm(unit - P @ (P.T @ unit), dim=0).max()
            assert left_out <= LEFT_OUT.get((precision, dtype), 0.25), f"{case}: {left_out:.1e} of a column is left out"


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.usefixtures("tf32")
def test_orthonormal_in_tf32(name: str, dtype: torch.dtype) -> None:
    check(name, dtype, "tf32")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16x3", BF16), ("bf16x3", F32), ("float32", BF16)], ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_orthonormal_in_bf16x3_and_float32(name: str, precision: str, dtype: torch.dtype) -> None:
    check(name, dtype, precision)


@pytest.mark.usefixtures("tf32")
def test_many_rows_and_columns_in_other_arithmetic() -> None:
    for shape, precision in product(((4000, 16), (600, 500)), ("tf32", "bf16x3")):
        B = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        columns = orthonormalize(B[None], precision=precision)
        assert columns.live.all(), (shape, precision)
        assert error_of(columns) <= BOUND[precision], (shape, precision)


@pytest.mark.parametrize("precision", ["float32", "bf16x3"])
def test_columns_with_few_large_rows(precision: str) -> None:
    """A Gram matrix that misses a little of each product of these would have eigenvalues far below zero."""
    for large, r, rest in product((2, 4, 8), (32, 64, 128), (0.0, 1e-4)):
        B = rest * torch.randn(2 * r, r, generator=torch.Generator().manual_seed(0))
        B[:large] = 1 + torch.rand(large, r, generator=torch.Generator().manual_seed(1))
        columns = orthonormalize(B[None], precision=precision)
        case = f"{large} large rows, {r} columns, the rest {rest}"
        assert columns.live.sum() == (r if rest else large), f"{case}: {columns.live.sum()} columns live"
        assert error_of(columns) <= BOUND[precision], case


@pytest.mark.usefixtures("tf32")
def test_columns_of_kahan_matrices_stay_short_in_other_arithmetic() -> None:
    for r, precision in product((100, 300), ("tf32", "bf16x3")):
        P = orthonormalize(kahan(r)[None].float(), precision=precision).vectors[0].double()
        assert P.isfinite().all(), (r, precision)
        assert torch.linalg.matrix_norm(P, ord=2) < 1.1, (r, precision)


def test_float64_is_multiplied_in_float64() -> None:
    B = randn(40, 12)
    expected = orthonormalize(B.clone()[None])
    for precision in ("tf32", "bf16x3"):
        assert torch.equal(orthonormalize(B.clone()[None], precision=precision).vectors, expected.vectors)


def test_errors_of_split_products() -> None:
    A, B = randn(2, 30, 20), randn(2, 20, 10)
    exact = A.float().double() @ B.float().double()
    size = A.abs() @ B.abs()
    assert ((product_in_bf16x3(A.float(), B.float()) - exact).abs() / size).max() < 2.0**-16
    gram = gram_in_bf16x3(A.float())
    assert ((gram - A.mT @ A).abs() / (A.abs().mT @ A.abs())).max() < 2.0**-16
    assert gram_in_bf16x3(A[:0].float()).shape == (0, 20, 20)


STEPS = 4
STEP_ERROR = {"tf32": 5e-3, "bf16x3": 1e-4}


@pytest.mark.parametrize("kind", ["full_rank", "rank_1", "live_rows", "zero_at_first", "tiny", "huge"])
@pytest.mark.parametrize("precision", STEP_ERROR)
@pytest.mark.usefixtures("tf32")
def test_steps_of_dion_in_other_arithmetic(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orthon.algorithms.low_rank.check_precision", lambda *_: None)
    for right_factor in ("normalize", "orthonormalize", "polar"):
        options: dict[str, Any] = {"precision": precision, "right_factor": right_factor, "rank_fraction": 0.5}
        both = run("dion", sequence(kind, 24, 10, STEPS), options, F32)
        assert_close(both.found, both.expected, STEP_ERROR[precision], f"{kind}, {precision}, {right_factor}")


def test_default_precision_follows_state_and_device() -> None:
    for device, storage, expected in [
        *((CPU, storage, "float32") for storage in (F16, BF16, F32, F64)),
        (CUDA, F16, "tf32"),
        (CUDA, BF16, "tf32"),
        (CUDA, F32, "bf16x3"),
        (CUDA, F64, "float32"),
    ]:
        assert default_precision(storage, device) == expected, (device, storage)


def test_tf32_is_refused_on_cpus() -> None:
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = Dion([("layer.weight", param)], precision="tf32")
    param.grad = torch.ones(4, 3)
    with pytest.raises(ValueError, match="'layer.weight': precision='tf32' needs a CUDA device, but .* is on cpu"):
        optimizer.step()
    assert torch.equal(param, torch.ones(4, 3))


@pytest.mark.parametrize("way", ["global", "of the backend"])
def test_the_users_setting_for_float32_products_stays(way: str) -> None:
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for allowed in ("highest", "high", "medium") if way == "global" else ("ieee", "tf32"):
            if way == "global":
                torch.set_float32_matmul_precision(allowed)
            else:
                torch.backends.cuda.matmul.fp32_precision = allowed
            setting = [backend.fp32_precision for backend in backends]
            product_in_tf32(torch.ones(2, 2), torch.ones(2, 2))
            for precision in ("ieee", "tf32"):
                with float32_products(precision):
                    on_cuda, on_cpu = (backend.fp32_precision for backend in backends)
                    assert on_cuda in {"ieee": ("ieee", "none"), "tf32": ("tf32",)}[precision]
                    assert on_cpu in ("ieee", "none")  # which are the same
                with pytest.raises(KeyError), float32_products(precision):
                    raise KeyError
            assert [backend.fp32_precision for backend in backends] == setting, allowed
            if way == "global":
                assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
