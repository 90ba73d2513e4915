"""What `for_model` and `param_groups` are asked for: what cannot be used is refused, and what has no effect is told."""

import re
import warnings
from decimal import Decimal
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon import Dion, param_groups

LR = "Dion: lr should be a number or a one-element tensor >= 0, but is"
BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *[
        ({"lr": lr, **ratio}, TypeError, f"{LR} {re.escape(repr(lr))}")
        for lr in ("2e-2", None, [0.1])
        for ratio in ({}, {"scalar_lr_ratio": 0.1})
    ],
    ({"lr": -1.0, "scalar_lr_ratio": 0.1}, ValueError, f"{LR} -1.0"),
    ({"lr": 0.1, "scalar_lr": -1.0}, ValueError, f"Dion.for_model: scalar_{LR.removeprefix('Dion: ')} -1.0"),
    ({"lr": 0.1, "scalar_lr": "1"}, TypeError, f"Dion.for_model: scalar_{LR.removeprefix('Dion: ')} '1'"),
    ({"overrides": {"*": None}}, TypeError, r"overrides\['\*'\] should be a dict of options, such as .* but is None"),
    ({"overrides": {"0.weight": "adamw"}}, TypeError, r"overrides\['0.weight'\] should be .* but is 'adamw'"),
    ({"overrides": {"0.weight": [("lr", 1)]}}, TypeError, r"overrides\['0.weight'\] should be a dict of options"),
    ({"overrides": {"0.weight": {0: 1}}}, TypeError, r"overrides\['0.weight'\] should be .* but is \{0: 1\}"),
    ({"overrides": [("1.weight", {})]}, TypeError, r"overrides should be a dict such as .* but is \[\('1.weight'"),
    ({"overrides": {0: {}}}, TypeError, "overrides should have patterns of names as keys, .* but has 0"),
    ({"overrides": "0.weight"}, TypeError, "overrides should be a dict such as .* but is '0.weight'"),
    *[({"per_head": v}, TypeError, f"per_head should be True or False, but is {v!r}") for v in ("false", 1, None)],
    *[
        ({"scalar_algorithm": v}, error, f"scalar_algorithm should be one of 'adamw'.*'lion'.*, but is {v!r}")
        for v, error in (
            ("muon", ValueError),
            ("Dion", ValueError),
            ("adam", ValueError),
            (None, TypeError),
            (3, TypeError),
        )
    ],
]


@pytest.mark.parametrize(("given", "error", "message"), BAD_ARGUMENTS, ids=[str(g) for g, *_ in BAD_ARGUMENTS])
def test_arguments_of_for_model(given: dict[str, Any], error: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(error, match=message):
        Dion.for_model(model, **given)
    if "lr" not in given:
        with pytest.raises(error, match=f"param_groups: {message}"):
            param_groups(model, **given)


def test_what_is_no_model() -> None:
    for model in (nn.Linear(3, 4).parameters(), None, [torch.zeros(4, 3)], torch.optim.SGD):
        message = f"model should be a torch.nn.Module, but is a {type(model).__name__}; for a list of parameters call"
        with pytest.raises(TypeError, match=f"Dion.for_model: {message}"):
            Dion.for_model(model)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"param_groups: {message}"):
            param_groups(model)  # type: ignore[arg-type]


def test_numbers_and_names_of_for_model_that_count_as_others() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for ratio in ({}, {"scalar_lr_ratio": 0.1}):
        assert type(Dion.for_model(model, lr=Decimal("0.02"), **ratio).param_groups[0]["lr"]) is float  # type: ignore
    for name in ("Lion", "LION", "lion"):
        groups = Dion.for_model(model, scalar_algorithm=name).param_groups
        assert groups[-1]["algorithm"] == param_groups(model, scalar_algorithm=name)[-1]["algorithm"] == "lion"


UNUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Muon", {"scalar_algorithm": "lion", "eps": 0.5}, "eps"),
    ("Dion", {"overrides": {"*": {"algorithm": "muon"}}, "scalar_algorithm": "lion", "eps": 0.5}, "eps"),
    ("Muon", {"scalar_algorithm": "lion", "eps": 1e-8}, ""),
    ("NorMuon", {"scalar_algorithm": "lion", "eps": 0.5}, ""),
    ("Muon", {"betas": (0.5, 0.5), "eps": 0.5}, ""),
    ("Muon", {"scalar_algorithm": "lion", "betas": (0.5, 0.5), "fused": False, "foreach": True}, ""),
]


@pytest.mark.parametrize(("rule", "given", "unused"), UNUSED, ids=[f"{r}, {g}" for r, g, _ in UNUSED])
def test_options_that_no_algorithm_has(rule: str, given: dict[str, Any], unused: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    if rule == "Dion":
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 5, bias=False), nn.GELU())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(orthon, rule).for_model(model, **given)
    told = [str(each.message) for each in caught if "no effect" in str(each.message)]
    assert len(told) == bool(unused)
    if unused:
        assert f"{rule}.for_model: {unused} has no effect, as no parameter goes to an algorithm that has it" in told[0]
