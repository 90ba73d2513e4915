"""Warnings point to the line of the user's that leads to them, whatever stands between."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import orthon


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))


def made() -> tuple[nn.Sequential, orthon.MixedOptimizer]:
    """Return a model and its optimizer with a scheduler, which puts a function of its own in the place of `step`."""
    model = net()
    model[0].requires_grad_(False)
    optimizer = orthon.Dion.for_model(model)
    LambdaLR(optimizer, lambda _: 1.0)
    return model, optimizer


def without_gradients() -> None:
    _, optimizer = made()
    optimizer.step()


def with_one_rate() -> None:
    model, optimizer = made()
    model(torch.ones(2, 6)).sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    optimizer.step()


def with_an_unfrozen_parameter() -> None:
    model, optimizer = made()
    model[0].requires_grad_(True)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()


def created_without_a_matrix() -> None:
    orthon.create("dion", nn.LayerNorm(4))


def made_without_a_matrix() -> None:
    orthon.Dion.for_model(nn.LayerNorm(4))


def created_with_an_option_of_no_use() -> None:
    orthon.create("muon", net(), scalar_algorithm="lion", eps=0.001)


def created_with_a_pattern() -> None:
    orthon.create("muon", net(), overrides={"no.such": {}})


def groups_with_a_pattern() -> None:
    orthon.param_groups(net(), overrides={"no.such": {}})


def groups_of_a_frozen_model() -> None:
    orthon.param_groups(net().requires_grad_(False))


CASES: dict[Callable[[], None], str] = {
    without_gradients: "no parameter has a gradient",
    with_one_rate: "all param groups have the learning rate 0.02 now",
    with_an_unfrozen_parameter: "'0.weight', '0.bias' have gradients, but were frozen",
    created_without_a_matrix: "none of the 2 parameters of LayerNorm goes to 'dion'",
    made_without_a_matrix: "none of the 2 parameters of LayerNorm goes to 'dion'",
    created_with_an_option_of_no_use: "eps has no effect",
    created_with_a_pattern: "the pattern 'no.such' in overrides matches no parameter",
    groups_with_a_pattern: "the pattern 'no.such' in overrides matches no parameter",
    groups_of_a_frozen_model: "there is nothing to train",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_where_a_warning_points(case: Callable[[], None]) -> None:
    with pytest.warns(UserWarning, match=CASES[case]) as caught:
        case()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    lines, first = inspect.getsourcelines(case)
    assert caught[0].lineno == first + len(lines) - 1, "the last line of the case"
