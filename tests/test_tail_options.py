"""The options of Dion's tail and of what stays in its momentum: what they allow, and what else they must agree with."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion
from orthon.saving.options import BEFORE
from tests.support.tails import F32, FADES, gradients_of
from tests.test_checkpoint_readers import load, save, trained

TAIL: dict[str, Any] = {**FADES, "tail": 0.7}
NEW = ("tail", "residual_momentum", "nesterov")


def run(options: dict[str, Any], *, steps: int = 3, dtype: torch.dtype = F32) -> tuple[nn.Parameter, Dion]:
    param = nn.Parameter(gradients_of("full_rank", (12, 20), 1, seed=1)[0].to(dtype))
    optimizer = Dion([("w", param)], lr=0.1, **options)
    for gradient in gradients_of("full_rank", (12, 20), steps):
        step(param, optimizer, gradient)
    return param, optimizer


def step(param: nn.Parameter, optimizer: Dion, gradient: Tensor) -> None:
    param.grad = gradient.to(param.dtype)
    optimizer.step()


def all_of(param: nn.Parameter, optimizer: Dion) -> dict[str, Tensor]:
    return {"weight": param.detach().clone(), **{key: x.clone() for key, x in optimizer.state[param].items()}}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, x in found.items():
        assert torch.equal(x, expected[key]), key


# The paper's


def test_the_paper_by_its_name() -> None:
    """Its options are those with which states were saved before there were others, and give the same bits."""
    assert {name: Dion.PAPER[name] for name in NEW} == BEFORE["dion"]
    by_hand = {"right_factor": "normalize", "tail": 0.0, "residual_momentum": 1.0, "nesterov": False}
    assert_same_bits(all_of(*run(dict(Dion.PAPER))), all_of(*run(by_hand)))
    model = nn.Linear(4, 3)
    group = next(g for g in Dion.for_model(model, **Dion.PAPER).param_groups if g["algorithm"] == "dion")
    assert {name: group[name] for name in by_hand} == by_hand


@pytest.mark.parametrize("right_factor", ["normalize", "orthonormalize"])
def test_a_state_saved_before_goes_on_as_the_papers(right_factor: str) -> None:
    """What the loading optimizer was made with is another tail, and does not count."""
    param, optimizer = run({**Dion.PAPER, "right_factor": right_factor})
    saved = copy.deepcopy(optimizer.state_dict())
    for name in NEW:
        del saved["param_groups"][0][name]
    other = nn.Parameter(param.detach().clone())
    loaded = Dion([("w", other)], lr=0.1, **TAIL)
    loaded.load_state_dict(saved)
    for gradient in gradients_of("full_rank", (12, 20), 2, seed=2):
        step(param, optimizer, gradient)
        step(other, loaded, gradient)
    assert {name: loaded.param_groups[0][name] for name in NEW} == {name: Dion.PAPER[name] for name in NEW}
    assert_same_bits(all_of(other, loaded), all_of(param, optimizer))


@pytest.mark.parametrize("flat", [False, True])
def test_a_checkpoint_saved_before_goes_on_as_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    model, optimizer = trained(**Dion.PAPER)
    with monkeypatch.context() as patch:  # what a version without these options wrote
        write = Dion.state_dict

        def of_before(self: Dion) -> dict[str, Any]:
            state = write(self)
            for group in state["param_groups"]:
                for name in NEW:
                    group.pop(name, None)
            return state

        patch.setattr(Dion, "state_dict", of_before)
        save(tmp_path / "checkpoint", model, optimizer, flat=flat)
    other, loaded = trained(seed=1, **TAIL)
    other.load_state_dict(model.state_dict())
    load(tmp_path / "checkpoint", other, loaded, flat=flat)
    for each, its in ((model, optimizer), (other, loaded)):
        its.zero_grad()
        each(torch.ones(3, 8)).square().sum().backward()
        its.step()
    group = next(g for g in loaded.param_groups if g["algorithm"] == "dion")
    assert {name: group[name] for name in NEW} == {name: Dion.PAPER[name] for name in NEW}
    assert_same_bits(dict(other.state_dict()), dict(model.state_dict()))


# What is allowed


NESTEROV = "nesterov should be False with residual_momentum=1.0, .*; residual_momentum=None is that"
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nesterov": True, "residual_momentum": 1.0}, ValueError, NESTEROV),
    ({"tail": -1.0}, ValueError, "tail should be a number >= 0, but is -1"),
    ({"tail": math.nan}, ValueError, "tail should be a number >= 0, but is nan"),
    ({"tail": math.inf}, ValueError, "tail should be a number >= 0, but is inf"),
    ({"tail": None}, TypeError, "tail should be a number >= 0, but is None"),
    ({"residual_momentum": 2.0}, ValueError, r"residual_momentum should be None or a number in \[0, 1\], but is 2.0"),
    ({"residual_momentum": math.nan}, ValueError, r"residual_momentum should be None or a number in \[0, 1\]"),
    ({"residual_momentum": "all"}, TypeError, "residual_momentum should be None or a number"),
    ({"nesterov": 1}, TypeError, "nesterov should be True or False, but is 1"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[str(change) for change, *_ in WRONG])
def test_what_is_not_allowed(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Neither to the constructor nor between two steps, which then changes nothing."""
    with pytest.raises(error, match=message):
        Dion([("w", nn.Parameter(torch.ones(4, 6)))], **change)
    param, optimizer = run(TAIL)
    before, options = all_of(param, optimizer), dict(optimizer.param_groups[0])
    optimizer.param_groups[0].update(change)
    with pytest.raises(error, match=message):
        step(param, optimizer, torch.ones(12, 20))
    assert_same_bits(all_of(param, optimizer), before)
    optimizer.param_groups[0].update(options)
    step(param, optimizer, torch.ones(12, 20))


def test_options_changed_between_steps_count_from_then_on() -> None:
    """As in an optimizer that has always had them, on the same state."""
    param, optimizer = run(dict(Dion.PAPER))
    other, changed = run(dict(Dion.PAPER))
    fresh = Dion([("w", param)], lr=0.1, **TAIL)
    for key, x in optimizer.state[param].items():
        fresh.state[param][key] = x
    changed.param_groups[0].update(TAIL)
    for gradient in gradients_of("full_rank", (12, 20), 2, seed=2):
        step(param, fresh, gradient)
        step(other, changed, gradient)
    assert_same_bits(all_of(other, changed), all_of(param, fresh))


# With other options


STEPS_LEFT_OUT: dict[str, dict[str, Any]] = {
    "skip": {"nonfinite": "skip"},
    "capturable": {"nonfinite": "skip", "capturable": True},
    "cautious": {"nonfinite": "skip", "weight_decay": 0.5, "cautious_weight_decay": True},
    "feedback": {"nonfinite": "skip", "residual_momentum": 0.5, "nesterov": False},
    "momentum in bfloat16": {"nonfinite": "skip", "state_dtype": torch.bfloat16},
    "products in bfloat16": {"nonfinite": "skip", "product_dtype": torch.bfloat16},
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", STEPS_LEFT_OUT.values(), ids=STEPS_LEFT_OUT)
def test_a_step_that_is_left_out_changes_no_bit(options: dict[str, Any], bad: float) -> None:
    param, optimizer = run({**TAIL, **options})
    before, gradient = all_of(param, optimizer), torch.ones(12, 20)
    gradient[3, 4] = bad
    step(param, optimizer, gradient)
    assert_same_bits(all_of(param, optimizer), before)
    assert int(optimizer.skipped_steps) == 1
    step(param, optimizer, torch.ones(12, 20))
    assert not torch.equal(param, before["weight"])


@pytest.mark.parametrize(
    "more", [{}, {"weight_decay": 0.5, "cautious_weight_decay": True}, {"nesterov": False}], ids=str
)
def test_maximize_is_a_step_on_negated_gradients(more: dict[str, Any]) -> None:
    param, optimizer = run({**TAIL, **more})
    other, uphill = run({**TAIL, **more, "maximize": True}, steps=0)
    for gradient in gradients_of("full_rank", (12, 20), 3):
        step(other, uphill, -gradient)
    for key, x in all_of(other, uphill).items():
        torch.testing.assert_close(x, all_of(param, optimizer)[key], rtol=1e-5, atol=1e-6, msg=key)


def test_cautious_decay_looks_at_the_whole_update() -> None:
    """Also at the tail: only entries decay that do not grow."""
    decay = {"weight_decay": 0.5, "adjust_lr_fn": "none"}
    plain, _ = run({**TAIL, **decay, "weight_decay": 0.0}, steps=1, dtype=torch.float64)
    cautious, _ = run({**TAIL, **decay, "cautious_weight_decay": True}, steps=1, dtype=torch.float64)
    start, _ = run(TAIL, steps=0, dtype=torch.float64)
    with torch.no_grad():
        update = (start - plain) / 0.1
        decayed = torch.where(update * start >= 0, start, 0)
        assert (cautious - (plain - 0.1 * 0.5 * decayed)).abs().max() < 1e-12
