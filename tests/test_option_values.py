"""Values of options: numbers of any kind, and what is changed during a run."""

import copy
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon import Dion, MixedOptimizer
from tests.support.all_rules import all_rules, step, weights

NUMBERS: list[tuple[str, str, Any, float]] = [
    *[("dion", name, np.float32(0.25), 0.25) for name in ("lr", "weight_decay", "momentum", "rank_fraction")],
    ("dion", "rank_fraction", Fraction(1, 3), 1 / 3),
    ("dion", "rank_fraction", torch.tensor(0.5), 0.5),
    ("dion", "rank_fraction", 1, 1),
    ("dion", "momentum", torch.tensor([0.5]), 0.5),
    ("dion", "lr", np.float64(0.5), 0.5),
    ("dion", "lr", np.array(0.5), 0.5),
    ("dion", "lr", Decimal("0.5"), 0.5),
    ("dion", "lr", np.int64(1), 1),
    ("dion", "rank_multiple_of", np.int64(2), 2),
    ("dion", "seed", torch.tensor(3), 3),
    ("dion2", "fraction", Fraction(1, 2), 0.5),
    ("normuon", "beta2", np.float16(0.5), 0.5),
    ("adamw", "eps", np.float64(0.5), 0.5),
]


@pytest.mark.parametrize(("rule", "option", "value", "plain"), NUMBERS, ids=[f"{n[1]}, {n[2]!r}" for n in NUMBERS])
def test_numbers_of_any_kind(rule: str, option: str, value: Any, plain: float) -> None:
    def steps(given: Any, later: Any = None) -> tuple[Tensor, MixedOptimizer]:
        torch.manual_seed(0)
        param = nn.Parameter(torch.randn(6, 4))
        optimizer = Dion([{"params": [("w", param)], "algorithm": rule, option: given}])
        if later is not None:
            optimizer.param_groups[0][option] = later
        for t in range(2):
            step({"w": param}, optimizer, t)
        return param, optimizer

    expected, _ = steps(plain)
    for found, optimizer in (steps(value), steps(plain, value)):
        assert torch.equal(found, expected)
        kept = optimizer.param_groups[0][option]
        assert type(kept) in (int, float)
        assert kept == plain
    assert torch.equal(steps(plain)[0], expected)


def test_betas_of_any_kind() -> None:
    betas = Dion(
        [{"params": [nn.Parameter(torch.ones(3))], "algorithm": "adamw"}], betas=[np.float32(0.5), Fraction(1, 2)]
    )
    assert betas.param_groups[0]["betas"] == (0.5, 0.5)
    assert {type(beta) for beta in betas.param_groups[0]["betas"]} == {float}


DTYPES = [("dion", "state_dtype"), ("dion", "product_dtype"), ("muon", "polar_dtype")]


@pytest.mark.parametrize(("rule", "option"), DTYPES)
@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_dtypes_by_name(rule: str, option: str, name: str) -> None:
    param = nn.Parameter(torch.ones(6, 4))
    group = {"params": [param], "algorithm": rule}
    for optimizer in (Dion([{**group, option: name}]), orthon.create(rule, nn.Linear(4, 6), **{option: name})):
        assert optimizer.param_groups[0][option] is torch.bfloat16
    optimizer = Dion([group])
    optimizer.param_groups[0][option] = name
    step({"w": param}, optimizer, 0)
    assert optimizer.param_groups[0][option] is torch.bfloat16


@pytest.mark.parametrize("value", [np.bool_(True), 1 + 0j, torch.tensor(True), "0.1", np.ones(2), torch.ones(2), [0.1]])
def test_what_is_no_number(value: Any) -> None:
    for option in ("lr", "momentum"):
        with pytest.raises(TypeError, match=f"{option} should be a number"):
            Dion([nn.Parameter(torch.ones(3, 2))], **{option: value})


BAD_CHANGES: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("dion", {"algorithm": "nope"}, ValueError),
    ("dion", {"algorithm": 3}, ValueError),
    ("dion", {"lr": "a"}, TypeError),
    ("dion", {"lr": float("nan")}, ValueError),
    ("dion", {"lr": torch.tensor(float("nan"))}, ValueError),
    ("dion", {"lr": torch.ones(2)}, TypeError),
    ("dion", {"lr": float("inf")}, ValueError),
    ("dion", {"lr": None}, TypeError),
    ("dion", {"momentum": 1.5}, ValueError),
    ("dion", {"maximize": "yes"}, TypeError),
    ("dion", {"maximize": 0}, TypeError),
    ("dion", {"rank_fraction": 7.0}, ValueError),
    ("dion", {"weight_decay": -1}, ValueError),
    ("dion", {"view": "heads"}, TypeError),
    ("dion", {"adjust_lr_fn": "spectral"}, ValueError),
    ("dion", {"rank_frac": 0.5}, ValueError),
    ("dion2", {"fraction": 7.0}, ValueError),
    ("muon", {"polar": "qr"}, ValueError),
    ("normuon", {"beta2": 1.0}, ValueError),
    ("adamw", {"betas": 0.9}, TypeError),
    ("adamw", {"betas": (0.9, 2.0)}, ValueError),
    ("adamw", {"momentum": 2.0}, ValueError),
    ("lion", {"betas": None}, TypeError),
]


@pytest.mark.parametrize(("rule", "change", "error"), BAD_CHANGES, ids=[f"{r}, {c}" for r, c, _ in BAD_CHANGES])
def test_options_changed_mid_run_are_checked(rule: str, change: dict[str, Any], error: type[Exception]) -> None:
    """The error is the constructor's, and comes before any weight changes."""
    params = weights()
    optimizer = all_rules(params)
    step(params, optimizer, 0)
    (group,) = (g for g in optimizer.param_groups if g["name"] == rule)
    was = dict(group)
    group.update(change)
    before, state = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict()["state"])
    for _ in range(2):
        with pytest.raises(error) as caught:
            step(params, optimizer, 1)
        assert f"Dion: param group '{rule}': " in str(caught.value)
        for name, param in params.items():
            assert torch.equal(param, before[name]), name
    assert all(torch.equal(x, state[i][k]) for i, s in optimizer.state_dict()["state"].items() for k, x in s.items())
    if change.keys() != {"momentum"} or rule != "adamw":
        fresh = {"params": [nn.Parameter(torch.ones(6, 4))], "algorithm": rule, "name": rule, **change}
        with pytest.raises(error) as by_constructor:
            Dion([fresh])
        assert str(by_constructor.value) == str(caught.value)
    for key in group.keys() - was.keys():
        del group[key]
    group.update(was)
    step(params, optimizer, 1)


def test_a_tensor_lr_changed_in_place_is_checked() -> None:
    param, lr = nn.Parameter(torch.ones(3, 2)), torch.tensor(0.1)
    optimizer = Dion([param], lr=lr)
    step({"w": param}, optimizer, 0)
    lr.fill_(float("nan"))
    with pytest.raises(ValueError, match="param group 0: lr should be"):
        step({"w": param}, optimizer, 1)


def test_an_option_that_is_taken_away_has_its_default_again() -> None:
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = Dion([param], lr=0.5, momentum=0.5)
    step({"w": param}, optimizer, 0)
    for name, value in (("lr", 0.5), ("momentum", 0.5), ("maximize", False)):
        del optimizer.param_groups[0][name]
        step({"w": param}, optimizer, 1)
        assert optimizer.param_groups[0][name] == value
