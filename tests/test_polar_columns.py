"""Polar factors of tall matrices as columns, on hard matrices, against singular value decompositions in float64."""

import pytest
import torch
from torch import Tensor

from orthon.linalg import orthonormalize, polar_columns
from tests.support.hard_matrices import FULL, MATRICES, RANK, randn, with_singular_values

DTYPES = [torch.float32, torch.float64]


def exact(R: Tensor) -> Tensor:
    """Return the polar factor of a matrix of full rank, in float64."""
    R = R.double()
    W, _, Vt = torch.linalg.svd(R / R.abs().max(), full_matrices=False)
    return W @ Vt


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(256, 64), (48, 48), (300, 1), (1, 1)])
@pytest.mark.parametrize("name", MATRICES)
def test_orthonormal_columns(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    R = MATRICES[name](*shape).to(dtype)
    Q, live, _ = polar_columns(R[None])
    Q, live = Q[0].double(), live[0]
    assert Q.isfinite().all()
    assert torch.equal(live, orthonormalize(R.clone()[None]).live[0])
    assert not Q[:, ~live].any()
    if name in RANK:
        assert live.sum() == RANK[name](shape[1])
    # No direction is longer than 1, and all are as long if no singular value is close to noise beside the matrix.
    lengths = torch.linalg.svdvals(Q[:, live])
    limit = 1e-5 if dtype == torch.float32 else 1e-13
    assert (lengths <= 1 + limit).all(), f"up to {lengths.max() - 1:.1e} too long"
    if name in FULL | {"condition 1e+05", *RANK} and live.any():
        assert (lengths >= 1 - limit).all(), f"down to {lengths.min():.4f}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(256, 64), (48, 48), (300, 1)])
@pytest.mark.parametrize("name", sorted(FULL | {"condition 1e+05"}))
def test_is_the_polar_factor(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    R = MATRICES[name](*shape).to(dtype)
    Q, live, _ = polar_columns(R[None])
    kept = R[:, live[0]].double()
    values = torch.linalg.svdvals(kept / kept.abs().max())
    condition = float(values[0] / values[-1])
    error = torch.linalg.matrix_norm(Q[0][:, live[0]].double() - exact(kept), ord=2)
    eps = torch.finfo(dtype).eps
    assert error <= 8 * eps * (condition + shape[1] ** 0.5 * 8), f"{error:.1e} at condition {condition:.0e}"
    if name in FULL and shape[0] > shape[1]:
        assert live.all()


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("bf16x3", 3e-4)])
def test_arithmetics(precision: str, limit: float) -> None:
    R = with_singular_values(96, 32, torch.logspace(0, -1, 32).double()).float()
    Q = polar_columns(R[None], precision=precision).vectors[0].double()
    assert (Q.T @ Q - torch.eye(32)).abs().max() < limit
    assert (Q - exact(R)).norm() < 4 * limit


def test_16_bit_matrices_give_factors_in_float32() -> None:
    R = randn(64, 16).bfloat16()
    Q = polar_columns(R[None]).vectors[0]
    assert Q.dtype == torch.float32
    assert (Q - exact(R)).norm() < 1e-5


def test_does_not_depend_on_the_order_of_columns() -> None:
    R, order = randn(40, 12), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    Q, permuted = (polar_columns(x[None]).vectors[0] for x in (R, R[:, order]))
    torch.testing.assert_close(Q[:, order], permuted, rtol=0, atol=1e-13)


def test_a_batch_is_as_good_as_each_alone() -> None:
    names = ["random", "zero", "half the rank", "tiny", "huge", "condition 1e+05", "zero columns"]
    R = torch.stack([MATRICES[name](20, 6).float() for name in names])
    together = polar_columns(R)
    for i, name in enumerate(names):
        alone = polar_columns(R[i : i + 1])
        assert torch.equal(together.live[i], alone.live[0]), name
        # A batch sums in another order. What that changes is epsilon times the condition number.
        allowed = 1e-2 if name == "condition 1e+05" else 1e-5
        torch.testing.assert_close(together.vectors[i], alone.vectors[0], rtol=0, atol=allowed, msg=name)


def test_columns_known_to_be_noise_stay_zero() -> None:
    left = orthonormalize(MATRICES["half the rank"](30, 8)[None])
    R = randn(20, 8)[None] * left.live.unsqueeze(-2)
    Q, live, _ = polar_columns(R, left=left)
    assert torch.equal(live, left.live)
    assert (Q.mT @ Q - torch.diag_embed(live.double())).abs().max() < 1e-13
