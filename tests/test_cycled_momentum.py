"""Momentum that a scheduler has left in groups, and betas that a person sets: who has changed last counts."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from orthon import Dion, MixedOptimizer
from tests.support.all_rules import CYCLES, SCHEDULERS, step

Params = dict[str, nn.Parameter]


def made(kind: str) -> tuple[Params, MixedOptimizer]:
    """Return a matrix and a vector: in one group, or the vector in one of AdamW or Lion."""
    generator = torch.Generator().manual_seed(0)
    params = {
        name: nn.Parameter(torch.randn(*size, generator=generator)) for name, size in (("m", (4, 3)), ("v", (5,)))
    }
    if kind == "others":
        return params, Dion(list(params.items()), betas=(0.9, 0.95), others="adamw")
    groups: list[dict[str, Any]] = [{"params": [pair]} for pair in params.items()]
    groups[1]["algorithm"] = kind
    return params, Dion(groups, betas=(0.9, 0.95))


def kept(_: Params, optimizer: MixedOptimizer) -> MixedOptimizer:
    return optimizer


def loaded(_: Params, optimizer: MixedOptimizer) -> MixedOptimizer:
    """Return a fresh optimizer with the state. Its own scheduler has left other values."""
    groups: list[dict[str, Any]] = [
        {"params": list(zip(g["param_names"], g["params"], strict=True)), "algorithm": g["algorithm"]}
        | ({"others": g["others"]} if "others" in g else {})
        for g in optimizer.param_groups
    ]
    fresh = Dion(groups)
    SCHEDULERS["OneCycleLR"](fresh)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return fresh


def copied(params: Params, optimizer: MixedOptimizer) -> MixedOptimizer:
    own, other = pickle.loads(pickle.dumps((params, optimizer)))
    params.update(own)
    assert isinstance(other, MixedOptimizer)
    return other


WAYS = [kept, loaded, copied]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", CYCLES)
@pytest.mark.parametrize("kind", ["others", "adamw", "lion"])
def test_who_changed_last_counts(kind: str, name: str, way: Callable[[Params, MixedOptimizer], MixedOptimizer]) -> None:
    params, optimizer = made(kind)
    scheduler = SCHEDULERS[name](optimizer)
    for t in range(3):
        step(params, optimizer, t)
        scheduler.step()
    step(params, optimizer, 3)
    group = optimizer.param_groups[-1]
    assert "max_momentum" in group
    assert group["betas"] == (optimizer.param_groups[0]["momentum"], 0.95), "betas follow the scheduler"
    scheduler.step()  # the last one, which no step has seen

    def goes_on(betas: tuple[float, float]) -> None:
        nonlocal optimizer
        for seed in range(2):
            step(params, optimizer, seed)
            assert optimizer.param_groups[-1]["betas"] == betas
            optimizer = way(params, optimizer)
            assert optimizer.param_groups[-1]["betas"] == betas

    group["betas"] = (0.81, 0.99)
    optimizer = way(params, optimizer)
    goes_on((0.81, 0.99))
    optimizer.param_groups[-1]["momentum"] = 0.7
    optimizer = way(params, optimizer)
    goes_on((0.7, 0.99))
    optimizer.param_groups[-1]["betas"] = [0.6, 0.9]
    step(params, optimizer, 4)
    goes_on((0.6, 0.9))


@pytest.mark.parametrize("kind", ["others", "adamw", "lion"])
def test_the_second_beta_changes_under_a_scheduler(kind: str) -> None:
    params, optimizer = made(kind)
    scheduler = SCHEDULERS["OneCycleLR"](optimizer)
    for t in range(4):
        optimizer.param_groups[-1]["betas"] = (optimizer.param_groups[-1]["betas"][0], 0.9 + 0.01 * t)
        step(params, optimizer, t)
        expected = optimizer.param_groups[0]["momentum"], 0.9 + 0.01 * t
        assert optimizer.param_groups[-1]["betas"] == expected
        scheduler.step()


@pytest.mark.parametrize("kind", ["others", "adamw", "lion"])
@pytest.mark.parametrize("betas", [5, None, (0.9,), (1.5, 0.9)])
def test_betas_that_are_none_are_an_error_beside_momentum(kind: str, betas: Any) -> None:
    params, optimizer = made(kind)
    scheduler = SCHEDULERS["OneCycleLR"](optimizer)
    step(params, optimizer, 0)
    scheduler.step()
    group = optimizer.param_groups[-1]
    group["betas"] = betas
    before = params["v"].detach().clone()
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match="betas should be two numbers"):
            step(params, optimizer, 1)
        assert torch.equal(params["v"], before)
    group["betas"] = (0.8, 0.9)
    step(params, optimizer, 1)
    assert group["betas"] == (0.8, 0.9)


def test_a_group_with_others_has_momentum_and_betas_of_its_own_without_such_a_scheduler() -> None:
    params, optimizer = made("others")
    step(params, optimizer, 0)
    optimizer.param_groups[0]["momentum"] = 0.5
    step(params, optimizer, 1)
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["betas"]) == (0.5, (0.9, 0.95))
