"""Orthon's optimizers in Accelerate, by the package itself."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon import Dion, Dion3, Muon, explain

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState

# As accelerate does itself, but pytest forgets it: schedulers see that a step was skipped.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

MAKERS = [Dion, Muon, Dion3]
SCALE = 2.0**10
CLIP = 1e-3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module, step: int, bad: bool = False) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
    return model(x).float().square().mean() * (float("inf") if bad else 1.0)


def accelerator_of(precision: str, **options: Any) -> Accelerator:
    """Return an Accelerator. It refuses float16 on a CPU, and gets what it has on a GPU."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if precision == "bf16" else "no", **options)
    if precision == "fp16":
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return accelerator


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Forget the state that all Accelerators of a process share."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


class Run:
    """A training run with Accelerate."""

    def __init__(self, make: Any, precision: str, bad: tuple[int, ...] = ()) -> None:
        self.accelerator = accelerator_of(precision)
        self.plain = make.for_model(model := net())
        prepared = self.accelerator.prepare(model, self.plain, halved(self.plain))
        self.model, self.optimizer, self.schedule = prepared
        self.bad, self.skipped = bad, []

    def steps(self, first: int, end: int) -> None:
        for step in range(first, end):
            self.accelerator.backward(loss_of(self.model, step, step in self.bad))
            self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.skipped.append(self.optimizer.step_was_skipped)


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    for (name, value), right in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, right), name


CASES = [("no", ()), ("bf16", ()), ("fp16", ()), ("fp16", (1, 2)), ("fp16", (0,))]


@pytest.mark.parametrize(("precision", "bad"), CASES)
@pytest.mark.parametrize("make", MAKERS)
def test_it_does_the_steps_of_a_plain_loop(make: Any, precision: str, bad: tuple[int, ...]) -> None:
    run, model = Run(make, precision, bad), net()
    run.steps(0, 4)
    assert run.skipped == [step in bad for step in range(4)]
    optimizer = make.for_model(model)
    schedule, scale = halved(optimizer), SCALE if precision == "fp16" else 1.0
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    for step in range(4):
        if step in bad:
            scale /= 2
            continue
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=precision != "no"):
            loss = loss_of(model, step)
        (loss * scale).backward()
        for param in model.parameters():
            param.grad /= scale
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    assert_same(run.model, model)
    assert [g["lr"] for g in run.plain.param_groups] == [g["lr"] for g in optimizer.param_groups]


@pytest.mark.parametrize(("precision", "bad"), CASES)
@pytest.mark.parametrize("make", MAKERS)
def test_a_saved_run_goes_on_with_the_same_steps(
    make: Any, precision: str, bad: tuple[int, ...], tmp_path: Path
) -> None:
    run = Run(make, precision, bad)
    run.steps(0, 3)
    run.accelerator.save_state(tmp_path)
    run.steps(3, 5)
    weights, saved = copy.deepcopy(run.model), copy.deepcopy(run.optimizer.state_dict())
    run.accelerator.load_state(tmp_path)  # into the same run
    run.steps(3, 5)
    assert_same(run.model, weights)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    again = Run(make, precision, bad)  # and into a new one
    with torch.no_grad():
        next(again.model.parameters()).zero_()
    again.accelerator.load_state(tmp_path)
    again.steps(3, 5)
    assert_same(again.model, weights)
    loaded = again.optimizer.state_dict()
    assert loaded["param_groups"] == saved["param_groups"]
    assert loaded["state"].keys() == saved["state"].keys()
    if precision == "fp16":
        assert again.accelerator.scaler.get_scale() == SCALE / 2 ** len(bad)


@pytest.mark.parametrize("make", MAKERS)
def test_gradients_are_accumulated(make: Any) -> None:
    accelerator = accelerator_of("no", gradient_accumulation_steps=2)
    model, other = net(), net()
    optimizer, right = make.for_model(model), make.for_model(other)
    model, wrapped = accelerator.prepare(model, optimizer)
    for step in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, step))
            wrapped.step()
            wrapped.zero_grad()
        (loss_of(other, step) / 2).backward()
        if step % 2:
            right.step()
            right.zero_grad()
    assert_same(model, other)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_explain_and_counts_see_through_it(precision: str) -> None:
    run = Run(Dion, precision)
    assert isinstance(run.optimizer, AcceleratedOptimizer)
    assert explain(run.optimizer) == explain(run.plain) == explain(Dion.for_model(net()))
    run.steps(0, 2)
    assert orthon.skipped_steps(run.optimizer) == 0
    run.plain._unconsolidated.add(run.plain.param_groups[0]["params"][0])
    orthon.consolidate(run.optimizer)
    run.optimizer.state_dict()
    names = [group["name"] for group in run.optimizer.param_groups]
    assert names == ["hidden matrices", "norms and biases", "output head"]
    assert run.optimizer.defaults == run.plain.defaults


def test_without_a_scaler_a_gradient_that_is_not_finite_is_named() -> None:
    run = Run(Dion, "bf16", bad=(1,))
    run.steps(0, 1)
    run.accelerator.backward(loss_of(run.model, 1, bad=True))
    with pytest.raises(FloatingPointError, match="Dion: the gradient of '0.weight', .* has infinities or NaNs"):
        run.optimizer.step()
