"""Gradients with infinities and NaNs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion, MixedOptimizer
from tests.rules_table import EXACT, OPTIONS, POLAR_RULES


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {
        "small": nn.Parameter(torch.randn(6, 4)),
        "large": nn.Parameter(torch.randn(300, 260)),
        "lion": nn.Parameter(torch.randn(5)),
        "adamw": nn.Parameter(torch.randn(3, 2)),
    }


def optimizer_for(params: dict[str, nn.Parameter], nonfinite: str) -> Dion:
    groups = [
        {"params": [(name, p)], "algorithm": name if name in ("lion", "adamw") else "dion"}
        for name, p in params.items()
    ]
    return Dion(groups, nonfinite=nonfinite)


def step(params: dict[str, nn.Parameter], optimizer: Dion, seed: int, bad: dict[str, float] | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in params.items():
        p.grad = torch.randn(p.shape, generator=generator)
        if bad and name in bad:
            p.grad.view(-1)[1] = bad[name]
    optimizer.step()


def snapshot(params: dict[str, nn.Parameter], optimizer: Dion) -> list[Tensor]:
    state = [v.clone() for p in params.values() for v in optimizer.state.get(p, {}).values()]
    return [p.detach().clone() for p in params.values()] + state


BAD = [{"small": float("nan")}, {"large": float("inf")}, {"lion": -float("inf")}, {"adamw": float("nan"), "small": 1.0}]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("earlier_steps", [0, 2])
def test_raise_names_the_parameter_and_changes_nothing(earlier_steps: int, bad: dict[str, float]) -> None:
    params = parameters()
    optimizer = optimizer_for(params, "raise")
    for seed in range(earlier_steps):
        step(params, optimizer, seed)
    before = snapshot(params, optimizer)
    with pytest.raises(FloatingPointError, match=f"the gradient of '{next(iter(bad))}' has infinities or NaNs"):
        step(params, optimizer, 9, bad)
    after = snapshot(params, optimizer)
    assert len(before) == len(after)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_skip_leaves_the_step_out_and_counts(bad: dict[str, float]) -> None:
    params, expected = parameters(), parameters()
    optimizer, plain = optimizer_for(params, "skip"), optimizer_for(expected, "skip")
    for seed in range(4):
        if seed in (0, 2):
            step(params, optimizer, 100 + seed, bad)  # also before there is any state
        step(params, optimizer, seed)
        step(expected, plain, seed)
    assert optimizer.skipped_steps == 2
    assert plain.skipped_steps == 0
    for name in params:
        assert torch.equal(params[name], expected[name]), name
        for key, value in plain.state[expected[name]].items():
            assert torch.equal(optimizer.state[params[name]][key], value), (name, key)


def test_skip_takes_the_same_steps_as_raise() -> None:
    params, expected = parameters(), parameters()
    optimizers = optimizer_for(params, "skip"), optimizer_for(expected, "raise")
    for seed in range(3):
        step(params, optimizers[0], seed)
        step(expected, optimizers[1], seed)
    for name in params:
        torch.testing.assert_close(params[name], expected[name], msg=lambda m, n=name: f"{n}: {m}")


def trained(rule: str, options: dict[str, Any], dtype: torch.dtype, nonfinite: str) -> dict[str, Tensor]:
    """Return weights and state after three steps."""
    generator, found = torch.Generator().manual_seed(0), {}
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in ((6, 4), (300, 260))]
    optimizer = MixedOptimizer(params, algorithm=rule, options=options, nonfinite=nonfinite)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
        optimizer.step()
    for i, p in enumerate(params):
        found |= {f"weight {i}": p.detach()} | {f"{key} {i}": value for key, value in optimizer.state[p].items()}
    return found


@pytest.mark.parametrize("rule", OPTIONS)
def test_skip_is_as_exact_as_raise_in_float64(rule: str) -> None:
    """Numbers and tensors round in another order, and no more: a rate in float32 would err by 6e-8."""
    for label, options in OPTIONS[rule].items():
        given = {**(EXACT if rule in POLAR_RULES else {}), **options}
        expected = trained(rule, given, torch.float64, "raise")
        for key, value in trained(rule, given, torch.float64, "skip").items():
            error = (value - expected[key]).abs().max()
            assert error <= 1e-13 * expected[key].abs().max(), f"{label}: {key} differs by {error:.1e}"


@pytest.mark.parametrize("rule", ["dion", *POLAR_RULES])
def test_skip_is_as_exact_as_raise_where_only_the_state_is_in_float64(rule: str) -> None:
    found, expected = (trained(rule, {"state_dtype": torch.float64}, torch.float32, how) for how in ("skip", "raise"))
    for i in range(2):
        torch.testing.assert_close(found[f"momentum {i}"], expected[f"momentum {i}"], rtol=1e-13, atol=1e-13)


def test_finite_gradients_whose_norm_overflows_are_no_error() -> None:
    for nonfinite in ("raise", "skip"):
        param = nn.Parameter(torch.zeros(4, 4))
        optimizer = Dion([param], nonfinite=nonfinite)
        param.grad = torch.full((4, 4), 1e30)
        param.grad[0] = -1e29
        optimizer.step()
        assert param.isfinite().all()
        assert param.any()
        assert optimizer.skipped_steps == 0


def test_copies_keep_the_count() -> None:
    params = parameters()
    optimizer = optimizer_for(params, "skip")
    step(params, optimizer, 0, {"small": float("nan")})
    assert copy.deepcopy(optimizer).skipped_steps == 1


@pytest.mark.parametrize("n", [16, 64, 256])
@pytest.mark.parametrize("seed", range(3))
def test_equal_entries_are_no_error(n: int, seed: int) -> None:
    """All columns of M Q are one column, so that its factorization can break down, of a momentum that is finite."""
    weight = nn.Parameter(torch.zeros(n, n))
    weight.grad = torch.ones(n, n)
    Dion([weight], rank_fraction=0.25, seed=seed, weight_decay=0.0).step()
    update = weight.detach()
    torch.testing.assert_close(update, update.mean().expand_as(update), rtol=1e-3, atol=0.0)
    assert bool((update < 0).all())
