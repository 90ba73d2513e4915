"""torch.compile around a step, or around all of a training step, changes nothing."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion, MixedOptimizer
from orthon.algorithms import RULES

SHAPES = [(6, 9), (9, 6), (6, 9), (5, 5), (3, 8), (8, 3), (2, 7), (7, 2), (4, 9), (9, 4), (1, 5)]  # more than 8 kinds


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_equal(a: list[Tensor], b: list[Tensor], case: str) -> None:
    for place, (p, q) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(p, q), f"{case}: parameter {place}"


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_compiled_step_is_the_step(rule: str, nonfinite: str) -> None:
    options: dict[str, Any] = {"lr": torch.tensor(0.1), "weight_decay": torch.tensor(0.1)}
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    others = copy.deepcopy(params)
    optimizer, plain = (
        MixedOptimizer(each, algorithm=rule, options=options, nonfinite=nonfinite) for each in (params, others)
    )
    compiled = torch.compile(optimizer.step, backend="eager")
    for step in range(4):
        options["lr"].fill_(0.1 / (1 + step))
        for p, q in zip(params, others, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        # What the first two steps have compiled serves the later ones.
        with torch._dynamo.config.patch(error_on_recompile=step >= 2):
            compiled()
        plain.step()
    assert_equal(params, others, rule)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


def test_a_compiled_training_step_is_the_step() -> None:
    def train(model: nn.Module, optimizer: Dion, x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    model, other = small_model(), small_model()
    optimizer, plain = Dion.for_model(model), Dion.for_model(other)
    compiled = torch.compile(train, backend="eager")
    for _ in range(3):
        x = torch.randn(5, 8)
        compiled(model, optimizer, x)
        train(other, plain, x)
    assert_equal([*model.parameters()], [*other.parameters()], "training step")


def test_closures_of_a_compiled_step() -> None:
    model = small_model()
    optimizer = Dion.for_model(model)
    x = torch.randn(5, 8)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return float(loss.detach())

    compiled = torch.compile(optimizer.step, backend="eager")
    losses = [compiled(closure) for _ in range(3)]
    assert losses[2] < losses[0]
