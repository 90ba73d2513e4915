"""Every finite gradient gives the update that it should, whatever its scale, or an error before anything changes."""

from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon import MixedOptimizer
from orthon.algorithms.dion import PAPER

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "dion": [
        {},
        {**PAPER},
        {**PAPER, "right_factor": "orthonormalize", "power_iterations": 2},
        {**PAPER, "rank_fraction": 1.0},
        {**PAPER, "right_factor": "polar"},
    ],
    "muon": [{}, {"polar": "newton_schulz"}, {"polar": "svd"}],
    "normuon": [{}, {"polar": "newton_schulz"}],
    "dion2": [{}, {"polar": "svd"}],
    "dion3": [{}, {"selection_side": "short"}],
}
CASES = [(rule, options) for rule, each in OPTIONS.items() for options in each]
SHAPES = [(12, 8), (48, 96), (7, 7)]

# Powers of two, which round nothing, from the largest gradient that is taken to the smallest normal numbers.
SCALES = {
    torch.float32: [2.0**e for e in (107, 60, -60, -100, -118)],
    torch.float64: [2.0**e for e in (1000, 520, -330, -500, -540, -1000)],
}


def gradients(shape: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


def after(rule: str, grads: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, MixedOptimizer]:
    w = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = MixedOptimizer([("w", w)], algorithm=rule, options={"lr": 0.1, "weight_decay": 0.0, **options})
    for grad in grads:
        w.grad = grad.clone()
        optimizer.step()
    return w.detach(), optimizer


@pytest.mark.parametrize("as_on_gpu", [False, True])
@pytest.mark.parametrize("dtype", list(SCALES), ids=str)
@pytest.mark.parametrize(("rule", "options"), CASES, ids=[f"{rule} {options}" for rule, options in CASES])
def test_the_scale_does_not_matter(rule: str, options: dict[str, Any], dtype: torch.dtype, as_on_gpu: bool) -> None:
    """But for the tail's columns below 3e-36 in float32: docs/dion.md."""
    with mock.patch("orthon.linalg.device._TYPES", () if as_on_gpu else ("cpu",)):
        for shape in SHAPES:
            grads = gradients(shape, dtype)
            expected, _ = after(rule, grads, options)
            for scale in SCALES[dtype][: -1 if (rule, options, dtype) == ("dion", {}, torch.float32) else None]:
                found, _ = after(rule, [scale * grad for grad in grads], options)
                error = ((found - expected).norm() / expected.norm()).item()
                assert error < 1e4 * torch.finfo(dtype).eps, f"{shape}, {scale:.0e}: {error:.0e}"


@pytest.mark.parametrize(("dtype", "scale", "allowed"), [(torch.float32, 1e-42, 0.02), (torch.float64, 1e-320, 0.02)])
@pytest.mark.parametrize("rule", ["dion", "muon", "normuon"])
def test_subnormal_gradients(rule: str, dtype: torch.dtype, scale: float, allowed: float) -> None:
    """They have few digits. Of Dion2 and Dion3 these may choose other rows, and Dion's tail is shorter."""
    options = PAPER if rule == "dion" else {}
    grads = [scale * grad for grad in gradients((24, 16), dtype)]
    exact = [grad / scale for grad in grads] if dtype == torch.float64 else [grad.double() / scale for grad in grads]
    expected, _ = after(rule, exact, {**options})
    found, _ = after(rule, grads, {**options})
    assert (found - expected).norm() < allowed * expected.norm()


@pytest.mark.parametrize("rule", list(OPTIONS))
@pytest.mark.parametrize("exponents", [(-100, 100), (-125, 108), (0, 106), (-140, -100)])
def test_rows_of_very_different_size(rule: str, exponents: tuple[int, int]) -> None:
    """The large ones move, by what they would alone; nothing becomes NaN."""
    grads = gradients((12, 8), torch.float32)
    sizes = torch.logspace(*exponents, 12, base=2.0, dtype=torch.float64)[:, None]
    found, _ = after(
        rule,
        [(sizes * grad).float() for grad in grads],
        {"fraction": 1.0} if "dion" in rule[:4] and rule != "dion" else {},
    )
    assert found.isfinite().all()
    assert found[-1].norm() > 1e-2


UNUSABLE = {
    "1e38": (torch.float32, torch.full((4, 4), 1e38)),
    "the largest": (torch.float32, torch.full((4, 4), torch.finfo(torch.float32).max)),
    "one large number": (torch.float32, torch.eye(4) * 3e38),
    "sums that cancel": (torch.float32, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2) * 3e38),
    "bfloat16": (torch.bfloat16, torch.full((4, 4), 3e38, dtype=torch.bfloat16)),
    "float64": (torch.float64, torch.full((4, 4), 1e308, dtype=torch.float64)),
}


@pytest.mark.parametrize(
    ("rule", "case"),
    # In sums for AdamW and Lion numbers cancel, see docs/precision.md.
    [*product(OPTIONS, UNUSABLE), *product(("adamw", "lion"), sorted(UNUSABLE.keys() - {"sums that cancel"}))],
)
def test_gradients_whose_sums_would_overflow(rule: str, case: str) -> None:
    dtype, bad = UNUSABLE[case]
    for nonfinite in ("raise", "skip"):
        w, v = nn.Parameter(torch.ones(4, 4, dtype=dtype)), nn.Parameter(torch.ones(4, 4, dtype=dtype))
        optimizer = MixedOptimizer([("v", v), ("w", w)], algorithm=rule, options={}, nonfinite=nonfinite)
        for param in (v, w):
            param.grad = torch.eye(4, dtype=dtype)
        optimizer.step()
        before = [t.clone() for p in (v, w) for t in (p.detach(), *optimizer.state[p].values())]
        w.grad = bad.clone()
        if nonfinite == "raise":
            with pytest.raises(FloatingPointError, match="the gradient of 'w' has numbers so large that sums"):
                optimizer.step()
        else:
            optimizer.step()
            assert optimizer.skipped_steps == 1
        now = [t for p in (v, w) for t in (p.detach(), *optimizer.state[p].values())]
        assert all(map(torch.equal, before, now))


def test_squares_that_would_overflow() -> None:
    """Of AdamW they do so earlier than sums; a step of Lion or Muon takes such a gradient."""
    for rule, fits in (("adamw", False), ("lion", True), ("muon", True)):
        w = nn.Parameter(torch.ones(4, 4))
        optimizer = MixedOptimizer([("w", w)], algorithm=rule, options={})
        w.grad = torch.eye(4) * 1e20
        if fits:
            optimizer.step()
        else:
            with pytest.raises(FloatingPointError, match="sums of them would overflow"):
                optimizer.step()


def test_narrow_products_count() -> None:
    w = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    for options in ({"state_dtype": torch.float32}, {"polar_dtype": torch.bfloat16}):
        optimizer = orthon.Muon([("w", w)], **options)
        w.grad = torch.full((4, 4), 1e200, dtype=torch.float64)
        with pytest.raises(FloatingPointError, match="sums of them would overflow"):
            optimizer.step()
    optimizer = orthon.Muon([("w", w)])
    optimizer.step()
    assert (w < 1).any()


BAD_STATE = list(product(OPTIONS, [float("nan"), float("inf")]))


@pytest.mark.parametrize(("rule", "bad"), BAD_STATE)
def test_a_momentum_that_is_not_finite_is_found(rule: str, bad: float) -> None:
    params = {name: nn.Parameter(torch.randn(6, 4)) for name in ("v", "w")}
    optimizer = MixedOptimizer(list(params.items()), algorithm=rule, options={})
    for param in params.values():
        param.grad = torch.randn(6, 4)
    optimizer.step()
    optimizer.state[params["w"]]["momentum"][2] = bad
    before = params["w"].detach().clone()
    with pytest.raises(FloatingPointError, match="parameter 'w': its 'momentum' has infinities or NaNs"):
        optimizer.step()
    assert torch.equal(params["w"], before)
