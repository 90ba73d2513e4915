"""Faults on one rank alone: every rank does the same about them, and weights and state stay equal bit by bit."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from orthon import MixedOptimizer
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS

WORLD = 4
# How every run of the tests, and how the long one tries them.
FIRST = ["ddp", "hsdp compressed", "fsdp x tp same dim"]
LATER = ["ddp compressed", "fsdp 0", "hsdp", "tp row", "fsdp x tp other dim"]
FAULTY = 2  # the rank that has the fault
EXACT = {"polar": "svd"}
RULES: dict[str, dict[str, Any]] = {
    "dion by owners": {"algorithm": "dion", "route": "owners"},
    "dion on shards": {"algorithm": "dion", "route": "shards"},
    "muon": {"algorithm": "muon", **EXACT},
    "normuon": {"algorithm": "normuon", **EXACT},
    "dion2": {"algorithm": "dion2", **EXACT},
    "dion2 random": {"algorithm": "dion2", "selection": "random", **EXACT},
    "dion3": {"algorithm": "dion3", **EXACT},
    "adamw": {"algorithm": "adamw"},
    "lion": {"algorithm": "lion"},
}
SHAPE = (12, 20)
BAD = (float("nan"), float("inf"), -float("inf"))


def on(*, compressed: bool | None = None) -> pytest.MarkDecorator:
    """Return the layouts as a table, all or those with or without compressed synchronization."""
    names = [name for name in FIRST + LATER if compressed in (None, LAYOUTS[name].compressed)]
    return pytest.mark.parametrize(
        "layout", [pytest.param(name, marks=() if name in FIRST else pytest.mark.long) for name in names]
    )


class Training:
    """Every rule of the family in one optimizer, on a layout, with gradients that are functions of the step."""

    def __init__(self, layout: str, nonfinite: str) -> None:
        self.layout, self.world = layout, dist.get_world_size()
        groups: list[dict[str, Any]] = []
        self.params: dict[str, nn.Parameter] = {}
        for rule, options in RULES.items():
            self.params[rule] = nn.Parameter(self._build(rule, 0))
            groups.append({"params": [(rule, self.params[rule])], "lr": 0.05, **options})
        distributed: dict[str, Any] = {}
        if LAYOUTS[layout].replicas:
            distributed["replicas"] = layouts.replica_group(layout, self.world)
        distributed["sync_gradients"] = LAYOUTS[layout].compressed
        self.optimizer = MixedOptimizer(groups, algorithm="dion", options={}, nonfinite=nonfinite, **distributed)

    def _build(self, rule: str, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * number + list(RULES).index(rule))
        whole = torch.randn(*SHAPE, generator=generator, dtype=torch.float64)
        if number and LAYOUTS[self.layout].compressed:
            replicas = layouts.number_of_replicas(self.layout, self.world)
            each = layouts.noisy(whole, replicas, generator)
            whole = each[layouts.replica(self.layout, self.world, dist.get_rank())]
        return layouts.build(self.layout, self.world, whole)

    def backward(self, step: int, scale: float = 1.0) -> None:
        for name, param in self.params.items():
            param.grad = self._build(name, 1 + step) * scale

    def spoil(self, rule: str, value: float) -> None:
        """Put a value into the gradient of the rule's parameter, on one rank."""
        if dist.get_rank() == FAULTY:
            grad = self.params[rule].grad
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


@cache
def undisturbed(layout: str, nonfinite: str, steps: int) -> dict[str, Tensor]:
    """Return weights and state after these steps without any fault."""
    training = Training(layout, nonfinite)
    for step in range(steps):
        training.backward(step)
        training.optimizer.step()
    return training.snapshot()


def faulty_steps(layout: str, nonfinite: str, spoil: Callable[[Training, int, str], None]) -> tuple[int, list[str]]:
    """Have one bad step before each good one, with a fault in each rule's gradient in turn.

    Returns:
        The number of steps that were skipped, and the errors that were raised.
    """
    training = Training(layout, nonfinite)
    raised: list[str] = []
    for step, rule in enumerate(RULES):
        before = training.snapshot()
        training.backward(100 + step)
        spoil(training, step, rule)
        try:
            training.optimizer.step()
        except (FloatingPointError, ValueError) as error:
            raised.append(f"{type(error).__name__}: {error}")
        after = training.snapshot()
        # Where it is skipped, even the first step makes a state.
        assert_equal({name: after[name] for name in before}, before, f"{layout}, bad step {step}")
        assert nonfinite == "skip" or after.keys() == before.keys()
        training.backward(step)
        training.optimizer.step()
    assert_equal(training.snapshot(), undisturbed(layout, nonfinite, len(RULES)), layout)
    return training.optimizer.skipped_steps, raised


def not_finite(training: Training, step: int, rule: str) -> None:
    training.spoil(rule, BAD[step % len(BAD)])


def missing(training: Training, step: int, rule: str) -> None:
    if dist.get_rank() == FAULTY:
        training.params[rule].grad = None


@on()
def test_a_gradient_that_is_not_finite_raises_the_same_everywhere(ranks: Pool, layout: str) -> None:
    first, *others = ranks.run(WORLD, faulty_steps, layout, "raise", not_finite)
    assert others == [first] * (WORLD - 1)
    assert len(first[1]) == len(RULES)
    for message, rule in zip(first[1], RULES, strict=True):
        assert f"FloatingPointError: MixedOptimizer: the gradient of '{rule}' has infinities or NaNs" in message


@on()
def test_a_gradient_that_is_not_finite_is_skipped_everywhere(ranks: Pool, layout: str) -> None:
    assert ranks.run(WORLD, faulty_steps, layout, "skip", not_finite) == [(len(RULES), [])] * WORLD


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@on(compressed=False)
def test_a_missing_gradient_is_the_same_error_everywhere(ranks: Pool, layout: str, nonfinite: str) -> None:
    first, *others = ranks.run(WORLD, faulty_steps, layout, nonfinite, missing)
    assert others == [first] * (WORLD - 1)
    assert len(first[1]) == len(RULES)
    for message, rule in zip(first[1], RULES, strict=True):
        assert f"ValueError: MixedOptimizer: parameter '{rule}': gradient should be the same on all ranks" in message


def missing_as_zero(layout: str) -> None:
    snapshots = []
    for zero in (False, True):
        training = Training(layout, "raise")
        for step, rule in enumerate(RULES):
            training.backward(step)
            param = training.params[rule]
            if dist.get_rank() == FAULTY:
                param.grad = torch.zeros_like(param) if zero else None
            training.optimizer.step()
        snapshots.append(training.snapshot())
    assert_equal(*snapshots, layout)


@on(compressed=True)
def test_a_missing_gradient_counts_as_zero_in_compressed_synchronization(ranks: Pool, layout: str) -> None:
    ranks.run(WORLD, missing_as_zero, layout)


def late(layout: str) -> None:
    training = Training(layout, "raise")
    for step in range(3):
        training.backward(step)
        if step == 1 and dist.get_rank() == FAULTY:
            time.sleep(2)
        training.optimizer.step()
    assert_equal(training.snapshot(), undisturbed(layout, "raise", 3), layout)


@pytest.mark.parametrize("layout", ["hsdp compressed"])
def test_a_rank_that_is_late_by_seconds_changes_nothing(ranks: Pool, layout: str) -> None:
    ranks.run(WORLD, late, layout)


def scaled(layout: str) -> float:
    """Train with a scaler that finds infinities in each rule's gradient in turn, and return its last scale."""
    training = Training(layout, "raise")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step, rule in enumerate(RULES):
        for bad in (True, False):
            scaler.scale(torch.zeros(()))  # which makes the scale, in the first step
            before = training.snapshot()
            training.backward(step, scaler.get_scale())  # of this rank
            if bad:
                training.spoil(rule, float("inf"))
            if step % 2:
                scaler.unscale_(training.optimizer)
                nn.utils.clip_grad_norm_(training.params.values(), 1e9)
            scaler.step(training.optimizer)
            scaler.update()
            if bad:
                after = training.snapshot()
                assert_equal({name: after[name] for name in before}, before, f"{layout}, bad step {step}")
    assert training.optimizer.skipped_steps == len(RULES)
    assert_equal(training.snapshot(), undisturbed(layout, "skip", len(RULES)), layout)
    return scaler.get_scale()


@on()
def test_an_overflow_that_a_scaler_finds_is_skipped_everywhere(ranks: Pool, layout: str) -> None:
    """Each rank's scaler has a scale of its own: torch asks the ranks that hold other shards of a DTensor alone."""
    noticed = {FAULTY} if LAYOUTS[layout].plain else {2, 3} if "hsdp" in layout else set(range(WORLD))
    scales = ranks.run(WORLD, scaled, layout)
    assert scales == [2.0 ** (10 - len(RULES) * (rank in noticed)) for rank in range(WORLD)]
