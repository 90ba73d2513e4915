"""Faults on one rank alone: every rank does the same about them, and weights and state stay equal bit by bit."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orthon import MixedOptimizer
from tests.ranks import layouts
from tests.ranks.layouts import LAYOUTS
from tests.ranks.pool import Pool

WORLD = 4
ON = [
    "ddp",
    "ddp compressed",
    "fsdp 0",
    "hsdp",
    "hsdp compressed",
    "tp row",
    "fsdp x tp same dim",
    "fsdp x tp other dim",
]
FAULTY = 2  # the rank that has the fault
EXACT = {"polar": "svd"}
RULES: dict[str, dict[str, Any]] = {
    "dion": {"algorithm": "dion"},
    "muon": {"algorithm": "muon", **EXACT},
    "normuon": {"algorithm": "normuon", **EXACT},
    "dion2": {"algorithm": "dion2", **EXACT},
    "dion2 random": {"algorithm": "dion2", "selection": "random", **EXACT},
    "dion3": {"algorithm": "dion3", **EXACT},
    "adamw": {"algorithm": "adamw"},
    "lion": {"algorithm": "lion"},
}
SHAPES = {"wide": (12, 20), "tall": (20, 12)}


class Training:
    """Every rule of the family in one optimizer, on a layout, with gradients that are functions of the step."""

    def __init__(self, layout: str, nonfinite: str) -> None:
        self.layout, self.world = layout, dist.get_world_size()
        groups: list[dict[str, Any]] = []
        self.params: dict[str, nn.Parameter] = {}
        for rule, options in RULES.items():
            named = {f"{rule} {shape}": nn.Parameter(self._build(f"{rule} {shape}", 0)) for shape in SHAPES}
            groups.append({"params": list(named.items()), "lr": 0.05, **options})
            self.params |= named
        distributed: dict[str, Any] = {}
        if LAYOUTS[layout].replicas:
            distributed["replicas"] = layouts.replica_group(layout, self.world)
        distributed["sync_gradients"] = LAYOUTS[layout].compressed
        self.optimizer = MixedOptimizer(groups, algorithm="dion", options={}, nonfinite=nonfinite, **distributed)

    def _build(self, name: str, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * number + list(RULES).index(name.rsplit(" ", 1)[0]))
        whole = torch.randn(*SHAPES[name.rsplit(" ", 1)[1]], generator=generator, dtype=torch.float64)
        if number and LAYOUTS[self.layout].compressed:
            replicas = layouts.number_of_replicas(self.layout, self.world)
            each = layouts.noisy(whole, replicas, generator)
            whole = each[layouts.replica(self.layout, self.world, dist.get_rank())]
        return layouts.build(self.layout, self.world, whole)

    def backward(self, step: int, scale: float = 1.0) -> None:
        for name, param in self.params.items():
            param.grad = self._build(name, 1 + step) * scale

    def spoil(self, rule: str, value: float) -> None:
        """Put a value into the gradient of one of the rule's parameters, on one rank."""
        if dist.get_rank() == FAULTY:
            grad = self.params[f"{rule} wide"].grad
            assert grad is not None
            layouts.local(grad)[0, 1] = value

    def snapshot(self) -> dict[str, Tensor]:
        found = {name: param.detach() for name, param in self.params.items()}
        for name, param in self.params.items():
            for key, value in self.optimizer.state.get(param, {}).items():
                found[f"{key} of {name}"] = value
        return {name: layouts.local(value).clone() for name, value in found.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    assert found.keys() == expected.keys(), where
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{where}: {name}"


def undisturbed(layout: str, nonfinite: str, steps: int) -> dict[str, Tensor]:
    """Return weights and state after these steps without any fault."""
    training = Training(layout, nonfinite)
    for step in range(steps):
        training.backward(step)
        training.optimizer.step()
    return training.snapshot()


def refused(layout: str, nonfinite: str, spoil: Callable[[Training, str], None], error: type[Exception]) -> list[str]:
    """Have one bad step before each good one, for every rule, and return what they raise."""
    training, said = Training(layout, nonfinite), []
    for step, rule in enumerate(RULES):
        before = training.snapshot()
        training.backward(100 + step)
        spoil(training, rule)
        try:
            training.optimizer.step()
        except error as raised:
            said.append(str(raised))
        assert_equal(training.snapshot(), before, f"{layout}, bad step {step}")
        training.backward(step)
        training.optimizer.step()
    assert_equal(training.snapshot(), undisturbed(layout, nonfinite, len(RULES)), layout)
    return said


def with_nan(training: Training, rule: str) -> None:
    training.spoil(rule, float("nan"))


def with_infinity(training: Training, rule: str) -> None:
    training.spoil(rule, -float("inf"))


def without(training: Training, rule: str) -> None:
    if dist.get_rank() == FAULTY:
        training.params[f"{rule} wide"].grad = None


@pytest.mark.parametrize("spoil", [with_nan, with_infinity])
@pytest.mark.parametrize("layout", ON)
def test_raises_the_same_everywhere_and_changes_nothing(ranks: Pool, layout: str, spoil: Any) -> None:
    first, *others = ranks.run(WORLD, refused, layout, "raise", spoil, FloatingPointError)
    assert others == [first] * (WORLD - 1)
    assert len(first) == len(RULES)
    for message, rule in zip(first, RULES, strict=True):
        assert f"the gradient of '{rule} wide' has infinities or NaNs" in message


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("layout", [layout for layout in ON if not LAYOUTS[layout].compressed])
def test_a_missing_gradient_is_the_same_error_everywhere(ranks: Pool, layout: str, nonfinite: str) -> None:
    first, *others = ranks.run(WORLD, refused, layout, nonfinite, without, ValueError, timeout=30)
    assert others == [first] * (WORLD - 1)
    assert len(first) == len(RULES)
    for message, rule in zip(first, RULES, strict=True):
        assert f"'{rule} wide': gradient should be the same on all ranks" in message


def missing_as_zero(layout: str) -> None:
    snapshots = []
    for zero in (False, True):
        training = Training(layout, "raise")
        for step, rule in enumerate(RULES):
            training.backward(step)
            param = training.params[f"{rule} wide"]
            if dist.get_rank() == FAULTY:
                param.grad = torch.zeros_like(param) if zero else None
            training.optimizer.step()
        snapshots.append(training.snapshot())
    assert_equal(*snapshots, layout)


@pytest.mark.parametrize("layout", [layout for layout in ON if LAYOUTS[layout].compressed])
def test_a_missing_gradient_counts_as_zero_in_compressed_synchronization(ranks: Pool, layout: str) -> None:
    ranks.run(WORLD, missing_as_zero, layout, timeout=30)


def skips(layout: str, spoil: Callable[[Training, str], None]) -> None:
    """Have one bad step before each good one, for every rule."""
    training = Training(layout, "skip")
    for step, rule in enumerate(RULES):
        before = training.snapshot()
        training.backward(100 + step)
        spoil(training, rule)
        training.optimizer.step()
        after = training.snapshot()
        assert_equal({name: after[name] for name in before}, before, f"{layout}, bad step {step}")
        training.backward(step)
        training.optimizer.step()
    assert training.optimizer.skipped_steps == len(RULES)
    assert_equal(training.snapshot(), undisturbed(layout, "skip", len(RULES)), layout)


@pytest.mark.parametrize("spoil", [with_nan, with_infinity])
@pytest.mark.parametrize("layout", ON)
def test_skips_everywhere(ranks: Pool, layout: str, spoil: Any) -> None:
    ranks.run(WORLD, skips, layout, spoil)


def late(layout: str) -> None:
    training = Training(layout, "raise")
    for step in range(3):
        training.backward(step)
        if step == 1 and dist.get_rank() == FAULTY:
            time.sleep(2)
        training.optimizer.step()
    assert_equal(training.snapshot(), undisturbed(layout, "raise", 3), layout)


@pytest.mark.parametrize("layout", ["hsdp compressed", "fsdp x tp same dim"])
def test_a_rank_that_is_late_by_seconds_changes_nothing(ranks: Pool, layout: str) -> None:
    ranks.run(WORLD, late, layout)


def scaled(layout: str, unscale_before: bool, overflow: float) -> list[float]:
    """Train with a scaler of this rank's own, and return its scales."""
    training = Training(layout, "raise")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []
    for step, rule in enumerate(RULES):
        for bad in (True, False):
            scaler.scale(torch.zeros(()))  # which makes the scale, in the first step
            scales.append(scaler.get_scale())
            before = training.snapshot()
            training.backward(step, scales[-1])
            if bad:
                training.spoil(rule, overflow)
            if unscale_before:
                scaler.unscale_(training.optimizer)
                nn.utils.clip_grad_norm_(training.params.values(), 1e9)
            scaler.step(training.optimizer)
            scaler.update()
            if bad:
                after = training.snapshot()
                assert_equal({name: after[name] for name in before}, before, f"{layout}, bad step {step}")
    assert training.optimizer.skipped_steps == len(RULES)
    assert_equal(training.snapshot(), undisturbed(layout, "skip", len(RULES)), layout)
    return scales


@pytest.mark.parametrize("unscale_before", [False, True], ids=["", "unscaled and clipped before"])
@pytest.mark.parametrize("layout", ON)
def test_an_overflow_that_a_scaler_finds_on_one_rank(ranks: Pool, layout: str, unscale_before: bool) -> None:
    scales = ranks.run(WORLD, scaled, layout, unscale_before, float("inf"), timeout=30)
    assert scales[FAULTY][-1] == 2.0 ** (10 - len(RULES))
    if LAYOUTS[layout].plain:  # nothing that torch could ask the others by
        assert scales[FAULTY - 1][-1] == 2.0**10
    else:
        assert isinstance(DTensor, type)
