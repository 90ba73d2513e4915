"""Options that are tensors: each group has its own, so that what changes them in place changes each once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from orthon import Dion, MixedOptimizer


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def matrix() -> nn.Parameter:
    return nn.Parameter(torch.ones(4, 3))


def added(**options: Any) -> MixedOptimizer:
    optimizer = Dion([{"params": [matrix()], **options}])
    optimizer.add_param_group({"params": [matrix()], **options})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "algorithm": "adamw", **options})
    return optimizer


T = Tensor
MAKE: dict[str, Callable[[T, T], MixedOptimizer]] = {
    "lr, ratio": lambda t, _: Dion.for_model(net(), lr=t, scalar_lr_ratio=0.1),
    "lr": lambda t, _: Dion.for_model(net(), lr=t),
    "scalar_lr": lambda t, _: Dion.for_model(net(), scalar_lr=t),
    "one for both": lambda t, _: Dion.for_model(net(), lr=t, scalar_lr=t),
    "two groups of matrices": lambda t, _: Dion.for_model(net(), lr=t, overrides={"0.weight": {"momentum": 0.9}}),
    "in an override": lambda t, _: Dion.for_model(net(), overrides={"*": {"lr": t}}),
    "weight decay": lambda t, w: Dion.for_model(net(), lr=t, weight_decay=w),
    "default of groups": lambda t, w: Dion([{"params": matrix()}, {"params": matrix()}], lr=t, weight_decay=w),
    "explicit groups": lambda t, w: Dion([{"params": [matrix()], "lr": t, "weight_decay": w} for _ in range(3)]),
    "added groups": lambda t, w: added(lr=t, weight_decay=w),
    "lr as weight decay": lambda t, _: added(lr=t, weight_decay=t),
}


@pytest.mark.parametrize("name", MAKE)
def test_each_group_has_its_own(name: str) -> None:
    lr, decay = torch.tensor(0.02), torch.tensor(0.1)
    optimizer = MAKE[name](lr, decay)
    tensors = [value for group in optimizer.param_groups for value in group.values() if isinstance(value, Tensor)]
    assert len({id(tensor) for tensor in tensors}) == len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    assert sum(tensor is lr for tensor in tensors) == 1, "the first keeps the one that was given"
    before = [float(group["lr"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([rate / 2 for rate in before])
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    plateau.step(1.0)
    plateau.step(1.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([rate / 4 for rate in before])


def test_loaded_and_copied_groups_have_their_own() -> None:
    saved = Dion.for_model(net(), lr=torch.tensor(0.02), scalar_lr_ratio=0.1).state_dict()
    shared = saved["param_groups"][0]["lr"]
    for group in saved["param_groups"]:
        group["lr"] = shared
    optimizer = Dion.for_model(net())
    optimizer.load_state_dict(saved)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert len({rate.data_ptr() for rate in rates}) == len(rates)
    assert all(rate is not shared for rate in rates)
