"""A warning where a loop or a scheduler sets one learning rate for groups that were made with several."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from orthon import Dion, MixedOptimizer

MESSAGE = "Dion: all param groups have the learning rate 0.02 now, but were made with 0.01, 0.003"


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def step(net: nn.Module, optimizer: MixedOptimizer, lr: float | None = None) -> None:
    for group in optimizer.param_groups if lr is not None else ():
        group["lr"] = lr
    optimizer.zero_grad()
    net(torch.randn(5, 6)).square().mean().backward()
    optimizer.step()


def test_one_number_by_hand() -> None:
    net = model()
    optimizer = Dion.for_model(net)
    step(net, optimizer, 0.0)  # of a warmup, which tells nothing
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        step(net, optimizer, 0.02)
    assert caught[0].filename == __file__, "it points to the line that calls step()"
    step(net, optimizer, 0.01)  # once is enough


@pytest.mark.parametrize("resume", [False, True])
def test_a_copy_and_a_resumed_optimizer_warn_too(resume: bool) -> None:
    net = model()
    optimizer = Dion.for_model(net)
    if resume:
        optimizer.load_state_dict(Dion.for_model(model()).state_dict())
    else:
        net, optimizer = copy.deepcopy((net, optimizer))
    with pytest.warns(UserWarning, match=MESSAGE):
        step(net, optimizer, 0.02)


def test_schedulers_that_set_one_number() -> None:
    net = model()
    optimizer = Dion.for_model(net)
    lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=10, div_factor=25)
    with pytest.warns(UserWarning, match=MESSAGE):
        step(net, optimizer)


@pytest.mark.parametrize("lr", [0.02, 0.004, 0.003, 0.001, 1e-5])
def test_one_number_at_a_later_step(lr: float) -> None:
    net = model()
    optimizer = Dion.for_model(net)
    for _ in range(3):
        step(net, optimizer)
    with pytest.warns(UserWarning, match=f"all param groups have the learning rate {lr:g} now"):
        step(net, optimizer, lr)
    step(net, optimizer, lr / 2)  # once is enough


@pytest.mark.parametrize("lr", [0.02, 0.0045])
def test_one_number_beside_a_scheduler(lr: float) -> None:
    """One that is below all of them may be the end of its schedule."""
    net = model()
    optimizer = Dion.for_model(net)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)
    for _ in range(3):
        step(net, optimizer)
        schedule.step()
    with pytest.warns(UserWarning, match=f"all param groups have the learning rate {lr:g} now"):
        step(net, optimizer, lr)


FINE: dict[str, Callable[[MixedOptimizer], lr_scheduler.LRScheduler]] = {
    "factors": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(t / 3, 1.0)),
    "a list": lambda o: lr_scheduler.OneCycleLR(o, [0.02, 0.003, 0.003], total_steps=20),
    "one end for all, for long": lambda o: lr_scheduler.CosineAnnealingLR(o, 3, eta_min=1e-3),
    "one floor for all": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=0, min_lr=1e-4),
    "one end for all": lambda o: lr_scheduler.CosineAnnealingLR(o, 4, eta_min=1e-5),
}


@pytest.mark.parametrize("name", FINE)
def test_what_keeps_several_is_fine(name: str) -> None:
    net = model()
    optimizer = Dion.for_model(net)
    schedule = FINE[name](optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            step(net, optimizer)
            schedule.step(*([1.0] if name == "one floor for all" else []))


def test_one_floor_by_hand_is_fine() -> None:
    net = model()
    optimizer = Dion.for_model(net)
    starts = [group["lr"] for group in optimizer.param_groups]
    for t in range(12):
        for group, start in zip(optimizer.param_groups, starts, strict=True):
            group["lr"] = max(start * 0.7**t, 1e-3)
        step(net, optimizer)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_one_number_from_the_beginning_is_fine() -> None:
    net = model()
    step(net, Dion.for_model(net, 0.01, scalar_lr_ratio=1), 0.02)
    params = [{"params": net[0].weight}, {"params": net[2].weight}]
    step(net, Dion(params, lr=0.01), 0.02)


def test_tensors_are_not_read() -> None:
    net = model()
    optimizer = Dion.for_model(net, torch.tensor(0.01), scalar_lr=torch.tensor(0.003))
    step(net, optimizer, 0.02)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01, device="meta")
    optimizer._check.rates.look(optimizer.param_groups)
