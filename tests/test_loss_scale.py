"""torch.amp.GradScaler and what it hands to the optimizer, in one process."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import MixedOptimizer

RULES: dict[str, dict[str, Any]] = {
    "dion": {"algorithm": "dion"},
    "muon": {"algorithm": "muon"},
    "normuon": {"algorithm": "normuon"},
    "dion2": {"algorithm": "dion2"},
    "dion2 random": {"algorithm": "dion2", "selection": "random"},
    "dion3": {"algorithm": "dion3"},
    "adamw": {"algorithm": "adamw"},
    "lion": {"algorithm": "lion"},
}


def optimizer_of(rule: str, dtype: torch.dtype, **options: Any) -> tuple[nn.Parameter, MixedOptimizer]:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    param = nn.Parameter(weight)
    group = {"params": [("w", param)], "lr": 0.125, **RULES[rule]}
    if rule not in ("adamw", "lion"):
        group["state_dtype"] = torch.float32
    return param, MixedOptimizer([group], algorithm="dion", options={}, **options)


def gradient(step: int) -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1 + step))


def scaler_of(scale: float) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(()))  # which makes the scale
    return scaler


@pytest.mark.parametrize("unscale_before", [False, True])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("rule", RULES)
def test_scaled_gradients_give_the_same_steps_to_the_bit(rule: str, nonfinite: str, unscale_before: bool) -> None:
    param, optimizer = optimizer_of(rule, torch.float32, nonfinite=nonfinite)
    right, plain = optimizer_of(rule, torch.float32, nonfinite="skip")
    scaler = scaler_of(2.0**12)
    for step in range(4):
        param.grad = gradient(step) * scaler.get_scale()
        if overflows := step in (0, 2):
            param.grad[1, 2] = float("inf")
        before = {key: value.clone() for key, value in optimizer.state[param].items()}
        weight = param.detach().clone()
        if unscale_before:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if overflows:
            assert torch.equal(param, weight), f"step {step}"
            assert all(torch.equal(optimizer.state[param][key], value) for key, value in before.items())
        else:
            right.grad = gradient(step)
            plain.step()
        assert torch.equal(param, right), f"step {step}"
    assert optimizer.skipped_steps == 2
    assert scaler.get_scale() == 2.0**10


@pytest.mark.parametrize("rule", RULES)
def test_gradients_below_the_range_of_float16_count(rule: str) -> None:
    """Scaled they are numbers of float16. In their own size they would be zeros of it."""
    param, optimizer = optimizer_of(rule, torch.float16)
    right, plain = optimizer_of(rule, torch.float32, nonfinite="skip")
    scaler = scaler_of(2.0**40)
    for step in range(3):
        scaled = gradient(step).half()
        param.grad, right.grad = scaled, scaled.float() / 2**40
        scaler.step(optimizer)
        scaler.update()
        plain.step()
    assert optimizer.skipped_steps == 0
    assert param.isfinite().all()
    if rule not in ("adamw", "lion"):  # whose state is in the dtype of the weights
        torch.testing.assert_close(param.float(), right, rtol=1e-2, atol=1e-2)


def test_an_infinity_that_comes_after_the_scaler_is_skipped_as_well() -> None:
    param, optimizer = optimizer_of("dion", torch.float32)
    scaler = scaler_of(1.0)
    before = param.detach().clone()
    param.grad = gradient(0)
    scaler.unscale_(optimizer)
    param.grad[0, 0] = float("nan")
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(param, before)
    assert optimizer.skipped_steps == 1


def test_without_a_scaler_the_next_step_raises_again() -> None:
    param, optimizer = optimizer_of("dion", torch.float32)
    scaler = scaler_of(4.0)
    param.grad = gradient(0)
    scaler.step(optimizer)
    param.grad = gradient(0) / 0
    with pytest.raises(FloatingPointError, match="'w'"):
        optimizer.step()


def test_without_any_gradient_nothing_happens() -> None:
    param, optimizer = optimizer_of("dion", torch.float32)
    before = param.detach().clone()
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        scaler_of(4.0).step(optimizer)
    assert torch.equal(param, before)
    assert optimizer.skipped_steps == 0
