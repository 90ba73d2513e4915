"""Orthon's optimizers in the hands of Accelerate and Lightning.

The lines of theirs that matter are written anew here. The packages themselves are in `test_accelerate.py` and
`test_lightning.py`.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon import Dion, MixedOptimizer, Muon, NorMuon, explain
from tests.support.frameworks import AcceleratedOptimizer, LightningOptimizer, handles_unscaling, lightning_step

SCALE = 2.0**10


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
    return model(x).square().mean()


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=SCALE)


def backward(
    model: nn.Module, step: int, scale: torch.amp.GradScaler | None, bad: bool = False
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = loss_of(model, step) * (float("inf") if bad else 1.0)
        (loss if scale is None else scale.scale(loss)).backward()
        return loss

    return closure


MAKERS = [Dion, Muon, NorMuon]


def test_the_flag_is_for_scalers_alone() -> None:
    optimizer = Dion.for_model(net())
    assert not handles_unscaling(optimizer)
    assert not handles_unscaling(LightningOptimizer(optimizer))
    assert not handles_unscaling(AcceleratedOptimizer(optimizer))
    assert not handles_unscaling(MixedOptimizer(net()[0].parameters(), algorithm="adamw", options={}))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_lightning_clips(make: type[Dion], precision: str) -> None:
    model, other = net(), net()
    scale = scaler() if precision == "16-mixed" else None
    optimizer = make.for_model(model)
    expected = make.for_model(other, nonfinite="raise" if scale is None else "skip")
    for step in range(4):
        bad = scale is not None and step == 1
        before = copy.deepcopy(model.state_dict())
        lightning_step(optimizer, backward(model, step, scale, bad), scale, clip=1e-3)
        if bad:
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            continue
        backward(other, step, None)()
        nn.utils.clip_grad_norm_(other.parameters(), 1e-3)
        expected.step()
        for (name, param), right in zip(model.named_parameters(), other.parameters(), strict=True):
            # Clipping rounds otherwise here, and the lengths of a tail's columns are differences.
            torch.testing.assert_close(param, right, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert orthon.skipped_steps(LightningOptimizer(optimizer)) == (scale is not None)


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step.*:UserWarning")
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("schedule_first", [False, True])
def test_accelerate_tells_of_a_skipped_step(make: type[Dion], schedule_first: bool) -> None:
    model, scale = net(), scaler()
    optimizer = make.for_model(model)
    if schedule_first:  # schedulers put a function in the place of `step`, too
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        accelerated = AcceleratedOptimizer(optimizer, scale)
    else:
        accelerated = AcceleratedOptimizer(optimizer, scale)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    lr = optimizer.param_groups[0]["lr"]
    for step in range(4):
        bad = step in (1, 2)
        before = copy.deepcopy(model.state_dict())
        backward(model, step, scale, bad)()
        accelerated.step()
        assert accelerated.step_was_skipped == bad
        if not accelerated.step_was_skipped:  # as AcceleratedScheduler does
            schedule.step()
        same = [torch.equal(value, before[name]) for name, value in model.state_dict().items()]
        assert all(same) == bad
    assert scale.get_scale() == SCALE / 4
    assert optimizer.param_groups[0]["lr"] == lr / 4


@pytest.mark.parametrize("schedule", [False, True])
def test_a_plain_scaler_leaves_the_decision_to_the_step(schedule: bool) -> None:
    model, scale = net(), scaler()
    optimizer = Dion.for_model(model)
    if schedule:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        backward(model, step, scale, bad=step == 1)()
        scale.step(optimizer)
        scale.update()
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize(
    "wrap",
    [lambda o: o, AcceleratedOptimizer, LightningOptimizer, lambda o: AcceleratedOptimizer(LightningOptimizer(o))],
)
def test_explain_and_counts_see_through_wrappers(wrap: Callable[[Any], Any]) -> None:
    model = net()
    optimizer = Dion.for_model(model, nonfinite="skip")
    outer = wrap(optimizer)
    assert explain(outer) == explain(optimizer)
    for step in range(3):
        backward(model, step, None, bad=step > 0)()
        outer.step()
    assert orthon.skipped_steps(outer) == optimizer.skipped_steps == 2
    optimizer._unconsolidated.add(next(model.parameters()))
    orthon.consolidate(outer)
    optimizer.state_dict()
    if hasattr(outer, "consolidate"):
        optimizer._unconsolidated.add(next(model.parameters()))
        outer.consolidate()
        optimizer.state_dict()


@pytest.mark.parametrize("make", MAKERS)
def test_a_state_is_loaded_through_a_wrapper(make: type[Dion]) -> None:
    model = net()
    optimizer = make.for_model(model, lr=0.25)
    outer = LightningOptimizer(optimizer)
    called = []
    optimizer.register_load_state_dict_post_hook(called.append)
    backward(model, 0, None)()
    outer.step()
    saved, weights = copy.deepcopy(outer.state_dict()), copy.deepcopy(model.state_dict())
    ends = []
    for lr in (0.25, 7.0):  # which loading brings back
        for group in optimizer.param_groups:
            group["lr"] = lr
        model.load_state_dict(weights)
        outer.load_state_dict(saved)
        assert outer.param_groups is optimizer.param_groups
        backward(model, 1, None)()
        outer.step()
        ends.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert [each is optimizer for each in called] == [True, True]


@pytest.mark.parametrize("what", [explain, orthon.consolidate, orthon.skipped_steps])
def test_other_optimizers_are_refused_through_wrappers(what: Callable[[Any], Any]) -> None:
    adamw = torch.optim.AdamW(net().parameters())
    for other in (adamw, AcceleratedOptimizer(adamw), LightningOptimizer(adamw)):
        with pytest.raises(TypeError, match="optimizer should be one of Orthon's, but is a AdamW"):
            what(other)
