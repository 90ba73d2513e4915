"""Parameters on two devices in one group, as a model divided over devices has them. Meta is the second device here."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from orthon import MatrixView, MixedOptimizer
from orthon.step import plan as plan_module
from orthon.step.gradients import Gradients, check_devices, take_gradients
from orthon.step.member import Member

DEVICES = ("cpu", "meta")
RULES: list[tuple[str, dict[str, Any]]] = [
    ("dion", {}),
    ("dion", {"view": MatrixView(blocks=2)}),
    ("muon", {}),
    ("normuon", {}),
    ("dion2", {"selection": "random"}),
    ("dion3", {}),
    ("adamw", {}),
    ("adamw", {"foreach": True}),
    ("lion", {}),
]


def made(rule: str, options: dict[str, Any], devices: tuple[str, ...]) -> tuple[list[nn.Parameter], MixedOptimizer]:
    """Return matrices of one shape, in turn on each device, in one group."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(4, 6, generator=generator).to(d)) for _ in range(3) for d in devices]
    named = [(f"{param.device}.{i // len(devices)}", param) for i, param in enumerate(params)]
    return params, MixedOptimizer(named, algorithm=rule, options=options)


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        if not param.is_meta:
            param.grad = torch.randn(param.shape, generator=generator)
        else:
            param.grad = torch.empty_like(param)


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_no_batch_mixes_devices(rule: str, options: dict[str, Any]) -> None:
    params, optimizer = made(rule, options, DEVICES)
    give_gradients(params, 0)
    batches = [batch for waves in optimizer.waves(optimizer.members()) for wave in waves for batch in wave]
    found = [{piece.member.param.device.type for piece in batch.pieces} for batch in batches]
    assert all(len(devices) == 1 for devices in found)
    assert {device for devices in found for device in devices} == set(DEVICES)


@pytest.mark.parametrize("order", [DEVICES, DEVICES[::-1]], ids=str)
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_a_step_is_one_on_each_device(
    rule: str, options: dict[str, Any], order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of one device takes part in what is done on the other: torch would refuse that."""
    # Meta has no numbers, for which it is refused. Two real devices have some.
    monkeypatch.setattr(plan_module, "check_numbers", lambda *_: None)
    monkeypatch.setattr(Gradients, "unusable", lambda _: [])
    (params, optimizer), (alone, expected) = made(rule, options, order), made(rule, options, ("cpu",))
    on_cpu = [param for param in params if not param.is_meta]
    with torch.no_grad():
        for own, other in zip(on_cpu, alone, strict=True):
            own.copy_(other)
    for seed in range(3):
        give_gradients(params, seed)
        give_gradients(alone, seed)
        optimizer.step()
        expected.step()
    for own, other in zip(on_cpu, alone, strict=True):
        assert torch.equal(own, other)
    for param in params:
        of_shape = [value for value in optimizer.state[param].values() if value.ndim]
        assert of_shape
        assert all(value.device == param.device for value in of_shape)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("rule", ["dion", "muon", "adamw"])
def test_a_gradient_on_another_device_is_an_error(rule: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has stayed behind where a parameter was moved by its data, which torch cannot do between CPU and meta."""
    params, optimizer = made(rule, {}, ("cpu",))
    for seed in range(steps):
        give_gradients(params, seed)
        optimizer.step()
    give_gradients(params, steps)
    before = [param.detach().clone() for param in params]

    def take(members: Iterable[Member], owner: str) -> None:
        members = list(members)
        take_gradients(members, owner)
        members[2].grad = torch.empty(4, 6, device="meta")

    monkeypatch.setattr(plan_module, "take_gradients", take)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'cpu.2': its gradient should be on cpu, .* but is on meta; move the mo"):
            optimizer.step()
        assert all(map(torch.equal, params, before))
    monkeypatch.undo()
    optimizer.step()
    check_devices(optimizer.members(), "Dion")


def moved_parameter(optimizer: MixedOptimizer, param: nn.Parameter) -> nn.Parameter:
    """Put one on another device in its place, with its state, as `swap_module_params_on_conversion` has it."""
    other = nn.Parameter(torch.empty_like(param, device="meta"))
    optimizer.state[other] = optimizer.state.pop(param)
    group = optimizer.param_groups[0]
    group["params"] = [other if p is param else p for p in group["params"]]
    return other


def moved_and_alone(optimizer: MixedOptimizer, param: nn.Parameter) -> nn.Parameter:
    """The same, while no other parameter has a gradient."""
    other = moved_parameter(optimizer, param)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = None
    return other


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (moved_parameter, "'cpu.2': lies on meta"),
        (moved_and_alone, "'cpu.2': lies on meta now, but its state .* on cpu"),
    ],
)
@pytest.mark.parametrize("rule", ["dion", "muon", "adamw"])
def test_a_parameter_that_has_moved_without_its_state(
    rule: str, move: Callable[[MixedOptimizer, nn.Parameter], nn.Parameter], message: str
) -> None:
    params, optimizer = made(rule, {}, ("cpu",))
    give_gradients(params, 0)
    optimizer.step()
    give_gradients(params, 1)
    before = [param.detach().clone() for param in params]
    other = move(optimizer, params[2])
    other.grad = torch.empty_like(other)
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError), match=message):
            optimizer.step()
        assert all(map(torch.equal, params, before))
