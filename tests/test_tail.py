"""Dion with a tail, in one process: what holds for the whole update, whatever the gradients."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orthon import Dion, Muon
from orthon.algorithms.tail import MOST
from orthon.testing.references import dion
from tests.support.tails import ALL_KINDS, BF16, F32, F64, FADES, WAYS, basis, gradients_of, normal, updates

SHAPES = ((16, 24), (24, 16), (32, 32), (8, 64), (1, 12))

ROUNDING = {F64: 1e-9, F32: 1e-4}

# ‖E_j‖² is a difference. Where it is hardly more than noise beside ‖N_j‖², it is exact to 1/64 of itself only. In
# bfloat16, where R has been rounded, it may be a part of what it should be, though in a few columns only.
OF_DIFFERENCE = {F64: 0.01, F32: 0.01, BF16: 0.3}
OF_NORM = {F64: 0.01, F32: 0.01, BF16: 0.02}


# The whole update


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_finite_and_within_its_bounds(dtype: torch.dtype, kind: str, way: str) -> None:
    """‖update‖₂² ≤ ‖Q‖₂² + tail²·(m − r) and ‖update‖_F² ≤ r + tail²·(m − r), for any gradients.

    The tail is orthogonal to P from the left, and its n columns have length tail·√((m − r)/n) at most.
    """
    for shape, rank_fraction, tail in product(SHAPES, (0.05, 0.25, 0.5, 0.9), (0.5, 1.0, 3.0)):
        options = {**WAYS[way], "rank_fraction": rank_fraction, "tail": tail}
        for step, update in enumerate(updates(gradients_of(kind, shape), options, dtype)):
            where = f"{shape}, rank {rank_fraction}, tail {tail}, step {step}"
            norm = torch.linalg.matrix_norm(update.whole, ord=2).item()
            assert norm <= update.bound * (1 + OF_NORM[dtype]), f"{where}: {norm:.4f} > {update.bound:.4f}"
            size, most = update.whole.square().sum().item(), update.r + tail**2 * (update.m - update.r)
            assert size <= most * (1 + OF_DIFFERENCE[dtype]), f"{where}: {size:.4f} > {most:.4f}"


@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (64, 64)], ids=str)
def test_the_bound_of_the_spectral_norm_is_sharp(shape: tuple[int, int]) -> None:
    """A direction that P has missed, and that all columns but r share, takes all of the tail."""
    m, n, r = min(shape), max(shape), min(shape) // 16
    generator = torch.Generator().manual_seed(0)
    seen, missed = torch.zeros(m, n, dtype=F64), torch.zeros(m, n, dtype=F64)
    seen[:, :r] = normal(generator, m, r)
    missed[:, r:] = 1e3 * normal(generator, m, 1)
    gradients = [G if shape[0] <= shape[1] else G.mT for G in (seen, seen, missed)]
    *_, update = updates(gradients, {**FADES, "tail": 1.0, "rank_fraction": 1 / 16})
    assert torch.linalg.matrix_norm(update.whole, ord=2) > 0.9 * update.bound
    assert update.bound > 5


# Tail, shape, rank, and the largest spectral norms for three kinds of gradients, as on the page about Dion.
NORMS = (
    (0.5, (256, 256), 1 / 16, (1.1, 2.1, 5.3)),
    (0.7, (256, 256), 1 / 4, (1.5, 3.2, 4.1)),
    (0.7, (256, 256), 1 / 16, (1.4, 2.8, 5.3)),
    (0.7, (128, 512), 1 / 4, (1.2, 2.8, 3.8)),
    (1.0, (256, 256), 1 / 4, (2.0, 3.3, 5.7)),
    (1.0, (256, 256), 1 / 16, (2.0, 3.1, 5.3)),
)


@pytest.mark.parametrize(("tail", "shape", "rank_fraction", "norms"), NORMS, ids=str)
def test_how_large_updates_are(
    tail: float, shape: tuple[int, int], rank_fraction: float, norms: tuple[float, ...]
) -> None:
    options = {**FADES, "tail": tail, "rank_fraction": rank_fraction}
    for kind, norm in zip(("full_rank", "uneven_rows", "falling_by_powers"), norms, strict=True):
        steps = updates(gradients_of(kind, shape, 6), options, F32)
        found = max(torch.linalg.matrix_norm(update.whole, ord=2).item() for update in steps)
        assert abs(found - norm) < 0.15, f"{kind}: {found:.2f}"


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("shape", [(96, 96), (64, 256), (256, 64)], ids=str)
@pytest.mark.parametrize("tail", [0.5, 1.0])
def test_the_tail_of_noise(dtype: torch.dtype, shape: tuple[int, int], tail: float) -> None:
    """Its columns have one length, and the root mean square of its m − r singular values is `tail`, or hardly less."""
    gradients = gradients_of("full_rank", shape, 3)
    for way, rank_fraction in product(WAYS.values(), (1 / 16, 1 / 4, 1 / 2)):
        options = {**way, "rank_fraction": rank_fraction}
        with_tail = updates(gradients, {**options, "tail": tail}, dtype)
        without = updates(gradients, {**options, "tail": 0.0}, dtype)  # the state is the same
        for update, low_rank in zip(with_tail, without, strict=True):
            E = update.whole - low_rank.whole
            lengths = E.norm(dim=0)
            assert (lengths.max() - lengths.min()) <= ROUNDING[dtype] * lengths.max()
            values = torch.linalg.svdvals(E)[: update.m - update.r]
            size = values.square().mean().sqrt() / tail
            assert 0.94 < size < 1 + ROUNDING[dtype], "a short direction of P may bound it"
            assert values.max() < 1.2 * tail * (1 + math.sqrt((update.m - update.r) / update.n))
            assert torch.linalg.svdvals(low_rank.whole.mT @ E).max() < 10 * ROUNDING[dtype] * update.m


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_there_is_no_tail_where_nothing_is_left_out(dtype: torch.dtype, way: str) -> None:
    """At full rank, for zeros, and where a direction of P does not live, since N has no more than those that do."""
    cases = {"full_rank": 1.0, "uneven_rows": 1.0, "zero": 0.25, "rank_1": 0.9, "live_rows": 0.5}
    for (kind, rank_fraction), shape in product(cases.items(), ((16, 24), (24, 16), (20, 20))):
        gradients = gradients_of(kind, shape, 3)
        options = {**WAYS[way], "rank_fraction": rank_fraction}
        with_tail = updates(gradients, {**options, "tail": 1.0}, dtype)
        without = updates(gradients, {**options, "tail": 0.0}, dtype)
        for update, low_rank in zip(with_tail, without, strict=True):
            assert (update.whole - low_rank.whole).abs().max() <= (1e-12 if dtype == F64 else 1e-5), (kind, shape)


# Scale


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("dtype", "exponents", "error"),
    [(F32, (-112, -100, -40, 40, 100), 1e-5), (F64, (-1000, -500, -40, 40, 500, 1000), 1e-12)],
    ids=str,
)
def test_the_scale_of_gradients_does_not_matter(
    way: str, dtype: torch.dtype, exponents: tuple[int, ...], error: float
) -> None:
    """To the ends of the range. Gradients of 2¹⁰⁸ and more are refused, as sums of them would overflow."""
    for shape in ((16, 24), (24, 16), (270, 260)):
        gradients = [G.to(dtype).to(F64) for G in gradients_of("full_rank", shape, 3)]
        options = {**WAYS[way], "tail": 0.7}
        expected = list(updates(gradients, options, dtype))
        for k in exponents:
            scaled = [G * 2.0**k for G in gradients]
            for update, right in zip(updates(scaled, options, dtype), expected, strict=True):
                assert (update.whole - right.whole).norm() <= error * right.whole.norm(), (shape, k)


@pytest.mark.parametrize("shape", [(16, 24), (300, 260)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "state", "products", "error"),
    [
        (torch.float16, None, None, 2e-3),
        (torch.float16, F32, None, 1e-3),
        (torch.bfloat16, None, None, 2e-2),
        (torch.bfloat16, F32, None, 1e-2),
        (F32, torch.float16, None, 2e-3),
        (F32, torch.bfloat16, None, 2e-2),
        (F32, None, torch.bfloat16, 2e-2),
        (torch.float16, F32, torch.bfloat16, 2e-2),
        (F32, F64, None, 1e-6),
        (F64, None, F32, 1e-6),
    ],
    ids=str,
)
def test_other_dtypes(
    dtype: torch.dtype, state: torch.dtype | None, products: torch.dtype | None, error: float, shape: tuple[int, int]
) -> None:
    """Each is as exact as its own rounding, also for gradients whose inverse norms float16 cannot hold."""
    options: dict[str, Any] = {**FADES, "tail": 0.7}
    scales = (-20, -10, 0) if torch.float16 not in (dtype, state) or state == F32 else (-10, 0)
    for k in scales:
        gradients = [(G * 2.0**k).to(dtype) for G in gradients_of("full_rank", shape, 3)]
        right = list(updates([G.double() for G in gradients], options))
        found = updates(gradients, {**options, "state_dtype": state, "product_dtype": products}, dtype)
        for update, expected in zip(found, right, strict=True):
            assert (update.whole - expected.whole).norm() <= error * expected.whole.norm(), k


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_16_bit_weights_stay_finite(dtype: torch.dtype, kind: str) -> None:
    for state, tail in product((None, F32), (0.7, 3.0)):
        gradients = [G.to(dtype).nan_to_num() for G in gradients_of(kind, (16, 24))]
        for update in updates(gradients, {**FADES, "tail": tail, "state_dtype": state}, dtype):
            assert torch.linalg.matrix_norm(update.whole, ord=2) <= 1.05 * update.bound


# Relatives


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (20, 20), (1, 12)], ids=str)
@pytest.mark.parametrize("tail", [0.0, 0.7])
def test_at_full_rank_it_is_muon(shape: tuple[int, int], nesterov: bool, tail: float) -> None:
    def weights(make: type[Dion] | type[Muon], options: dict[str, Any]) -> list[Tensor]:
        param, found = nn.Parameter(torch.ones(shape, dtype=F64)), []
        optimizer = make([("w", param)], lr=0.1, weight_decay=0.1, momentum=0.8, nesterov=nesterov, **options)
        for gradient in gradients_of("full_rank", shape, 6):
            param.grad = gradient
            optimizer.step()
            found.append(param.detach().clone())
        return found

    of_dion = {"rank_fraction": 1.0, "right_factor": "polar", "residual_momentum": None, "tail": tail}
    for found, expected in zip(weights(Dion, of_dion), weights(Muon, {"polar": "svd"}), strict=True):
        assert (found - expected).abs().max() < 1e-9


@settings(max_examples=80, deadline=None)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    rank_fraction=st.floats(0.01, 1),
    tail=st.floats(0.01, 4),
    kind=st.sampled_from(["full_rank", "tiny", "huge", "equal_singular_values", "live_rows", "rank_1", "zero"]),
    way=st.sampled_from(sorted(WAYS)),
    seed=st.integers(0, 1000),
)
def test_any_small_matrix_is_as_the_reference_has_it(
    m: int, n: int, rank_fraction: float, tail: float, kind: str, way: str, seed: int
) -> None:
    """What is not in the space of P is the tail: Pᵀ·tail = 0, and the whole is that of the formulas."""
    param = nn.Parameter(torch.zeros(m, n, dtype=F64))
    options = {**WAYS[way], "tail": tail, "rank_fraction": rank_fraction}
    optimizer = Dion([("w", param)], lr=1.0, weight_decay=0.0, adjust_lr_fn="none", **options)
    group = optimizer.param_groups[0]
    state: dict[str, Tensor] = {}
    for gradient in gradients_of(kind, (m, n), 3, seed):
        param.data.zero_()
        param.grad = gradient.clone()
        state = state or _first_state(m, n, options)
        before = {key: x.clone() for key, x in state.items()}
        expected = dion(torch.zeros(m, n, dtype=F64), gradient, state, group)
        low_rank = dion(torch.zeros(m, n, dtype=F64), gradient, before, {**group, "tail": 0.0})
        optimizer.step()
        assert (param - expected).abs().max() < 1e-6
        found, low = (x if m <= n else x.mT for x in (param.detach(), low_rank))
        assert (low.mT @ (found - low)).abs().max() < 1e-6
        for key, x in optimizer.state[param].items():
            x.copy_(state[key])  # so that rounding does not add up over steps


def _first_state(m: int, n: int, options: dict[str, Any]) -> dict[str, Tensor]:
    param = nn.Parameter(torch.zeros(m, n, dtype=F64))
    optimizer = Dion([("w", param)], nonfinite="skip", **options)
    param.grad = torch.full((m, n), math.nan, dtype=F64)
    optimizer.step()
    return {key: x.clone() for key, x in optimizer.state[param].items()}


def test_what_is_far_below_the_directions_of_p_counts_less() -> None:
    """The tail's factors are at most MOST over the length of the shortest column of D R."""
    n, m, r = 40, 20, 2
    generator = torch.Generator().manual_seed(0)
    U, V = basis(generator, m, m), basis(generator, n, m)
    sizes = torch.tensor([100.0, 1.0] + [1e-3] * (m - r), dtype=F64)
    options = {**FADES, "tail": 3.0, "rank_fraction": r / m, "nesterov": False, "momentum": 0.0}
    *_, update = updates([U * sizes @ V.mT] * 20, options)
    E = (U[:, r:] * sizes[r:]) @ V[:, r:].mT
    R = V[:, :r] * sizes[:r]
    shortest = (R / E.norm(dim=0)[:, None]).norm(dim=0).min()
    c = min(3.0 * math.sqrt((m - r) / n), MOST / shortest.item())
    assert c == MOST / shortest.item(), "the bound is what counts here"
    assert (update.of_tail(U[:, :r]) - E / E.norm(dim=0) * c).abs().max() < 1e-6 * c
