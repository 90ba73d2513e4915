"""Orthonormalization and unit columns on hard matrices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orthon.linalg import Columns, orthonormalize, polar_columns, unit_columns
from tests.support.hard_matrices import COHERENT, FULL, MATRICES, RANK, kahan, randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(256, 64), (48, 48), (300, 1), (1, 1)])
@pytest.mark.parametrize("name", MATRICES)
def test_orthonormal_columns(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    B = MATRICES[name](*shape).to(dtype)
    P, live, _ = orthonormalize(B[None])
    P, live = P[0].double(), live[0]
    assert P.isfinite().all()

    gram_error = (P.T @ P - torch.diag(live.double())).abs().max()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert gram_error <= (4 if name in COHERENT else 1) * tolerance, f"PᵀP is off by {gram_error:.1e}"
    assert not P[:, ~live].any()

    if name in FULL and shape[0] > shape[1]:
        assert live.all(), f"{live.sum()} of {shape[1]} columns live"
    if name in RANK:
        assert live.sum() == RANK[name](shape[1]), f"{live.sum()} of {shape[1]} columns live"

    # P spans the columns of B, up to what is noise in this dtype, and R has a positive diagonal.
    unit = B.double() / torch.linalg.vector_norm(B.double(), dim=0).clamp_min(1e-300)
    if name not in ("Hilbert", "Vandermonde"):
        left_out = torch.linalg.vector_norm(unit - P @ (P.T @ unit), dim=0).max()
        assert left_out <= (2e-4 if dtype == torch.float32 else 1e-12), f"{left_out:.1e} of a column is left out"
    R = P.T @ unit
    assert (R.diagonal()[live] > 0).all()
    assert R.tril(-1).abs().max() <= 1e4 * torch.finfo(dtype).eps


def test_agrees_with_householder_qr() -> None:
    B = randn(40, 12)
    P = orthonormalize(B[None]).vectors[0]
    Q, R = torch.linalg.qr(B)
    torch.testing.assert_close(P, Q * R.diagonal().sign(), rtol=0, atol=1e-13)


def test_a_batch_is_as_good_as_each_alone() -> None:
    names = ["random", "zero", "half the rank", "tiny", "huge"]
    B = torch.stack([MATRICES[name](20, 6).float() for name in names])
    together = orthonormalize(B)
    for i, name in enumerate(names):
        alone = orthonormalize(B[i : i + 1])
        torch.testing.assert_close(together.vectors[i], alone.vectors[0], msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(together.live[i], alone.live[0])


def test_columns_of_kahan_matrices_stay_short() -> None:
    """The known counterexample to finding dependence column by column: no garbage, at worst no update."""
    for r in (100, 400):
        P = orthonormalize(kahan(r)[None].float()).vectors[0].double()
        assert P.isfinite().all()
        assert torch.linalg.matrix_norm(P, ord=2) < 1.1


@pytest.mark.parametrize("allowed", ["high", "medium"])
def test_reduced_precision_for_products_is_not_used_here(allowed: str) -> None:
    torch.set_float32_matmul_precision(allowed)
    try:
        P = orthonormalize(randn(64, 8).float()[None]).vectors[0]
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (P.T @ P - torch.eye(8)).abs().max() < 1e-6


def test_unit_columns() -> None:
    R = torch.tensor([[3.0, 0.0, 1e-9, 3e-3], [4.0, 0.0, 0.0, 4e-3]])
    for scale in (1.0, 1e-30, 1e30):
        Q, live, _ = unit_columns(scale * R[None])
        torch.testing.assert_close(Q[0], torch.tensor([[0.6, 0, 0, 0.6], [0.8, 0, 0, 0.8]]))
        assert live[0].tolist() == [True, False, False, True]


@settings(max_examples=80, deadline=None)
@given(
    m=st.integers(1, 20),
    r=st.integers(1, 20),
    rank=st.integers(0, 20),
    exponent=st.integers(-25, 25),
    seed=st.integers(0, 10_000),
)
def test_live_columns_count_the_rank(m: int, r: int, rank: int, exponent: int, seed: int) -> None:
    r, generator = min(m, r), torch.Generator().manual_seed(seed)
    rank = min(rank, r)
    # Integers, so that the product of low rank has exactly that rank.
    left = torch.randint(-9, 10, (m, rank), generator=generator).double()
    right = torch.randint(-9, 10, (rank, r), generator=generator).double()
    B = left @ right
    P, live, _ = orthonormalize((B * 10.0**exponent).float()[None])
    assert (P[0].T @ P[0] - torch.diag(live[0].float())).abs().max() < 2e-6
    # A singular value below 1e-5 of the largest may be found in float32, or not; what is exactly zero never is.
    assert torch.linalg.matrix_rank(B, rtol=1e-5) <= live.sum() <= torch.linalg.matrix_rank(B)


@pytest.mark.parametrize(("m", "r"), [(64, 16), (256, 64), (1024, 128), (4096, 8), (16384, 4)])
def test_equal_rows(m: int, r: int) -> None:
    """Sums of equal numbers round all to one side, so that a Gram matrix of rank one is far from one by rounding.

    Lengths of columns have the same error: up to half an epsilon for each row.
    """
    for seed in range(10):
        v = torch.randn(1, r, generator=torch.Generator().manual_seed(seed))
        columns = orthonormalize((torch.full((m, 1), 0.7) @ v)[None])
        assert columns.size.isfinite().all(), seed
        assert columns.live.sum() == 1, seed
        assert columns.vectors.double().square().sum((0, 1))[0].item() == pytest.approx(1, abs=m * 6e-8), seed


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8])
def test_equal_rows_change_no_other_matrix_of_a_batch(condition: float) -> None:
    m, r = 4096, 8
    generator = torch.Generator().manual_seed(1)
    U = torch.linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))[0]
    other = ((U * condition ** -torch.linspace(0, 1, r, dtype=torch.float64)) @ V.T).float()
    equal = torch.full((m, 1), 0.7) @ torch.randn(1, r, generator=torch.Generator().manual_seed(5))
    alone = orthonormalize(other[None].clone())
    together = orthonormalize(torch.stack([other, equal]))
    assert torch.equal(together.live[0], alone.live[0])
    assert together.live[1].sum() == 1
    live = alone.live[0]
    gram = together.vectors[0][:, live].double().T @ together.vectors[0][:, live].double()
    assert (gram - torch.eye(len(gram), dtype=torch.float64)).abs().max() < 1e-5


ONES, LEFT = torch.ones(1, 4, 2), Columns(torch.ones(1, 4, 3), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3))
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "one matrix": (ONES[0], {}, r"should be a batch of matrices \(b, m, r\), but has the shape \(4, 2\)"),
    "complex numbers": (ONES.cfloat(), {}, "should be a tensor in one of torch.float64, .*, but is in torch.complex64"),
    "integers": (ONES.long(), {}, "should be a tensor in one of torch.float64, .*, but is in torch.int64"),
    "a list": ([[[1.0]]], {}, "should be a tensor in one of torch.float64, .*, but is a list"),
    "an unknown precision": (ONES, {"precision": "foo"}, "precision should be one of float32, .*, but is 'foo'"),
    "no precision": (ONES, {"precision": None}, "precision should be one of float32, .*, but is None"),
    "a number as noise": (ONES, {"noise": 0.1}, "noise should be a Noise or None, but is 0.1"),
    "a tensor as left": (ONES, {"left": ONES}, "left should be Columns or None, but is a Tensor"),
    "more columns left": (ONES, {"left": LEFT}, r"left should have as many columns as ., \(1, 2\), but has \(1, 3\)"),
}


@pytest.mark.parametrize("function", [orthonormalize, polar_columns, unit_columns])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(function: Callable[..., Columns], case: str) -> None:
    columns, others, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        function(columns, **others)
