"""torch's schedulers, each with all rules: what they set, and runs that go on."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from orthon import Dion
from orthon.algorithms import RULES
from orthon.saving import LoadPlanner
from tests.support.all_rules import CYCLES, SAVED, SCHEDULERS, STEPS, Weights, all_rules, first_beta, step, weights


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_what_they_set_in_torchs(name: str, as_tensor: bool) -> None:
    """The options of every step are those of torch's SGD, or AdamW for rules with betas, with the same scheduler."""

    def lr() -> Any:
        return torch.tensor(0.05) if as_tensor else 0.05

    params = weights()
    ours = all_rules(params, lr=lr())
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=lr(), momentum=0.95)
    adamw = torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=lr(), betas=(0.9, 0.95))
    theirs = {"momentum": (sgd, SCHEDULERS[name](sgd)), "betas": (adamw, SCHEDULERS[name](adamw))}
    scheduler = SCHEDULERS[name](ours)
    for t in range(STEPS):
        step(params, ours, t)
        for group in ours.param_groups:
            kind = "betas" if "betas" in RULES[group["algorithm"]].options else "momentum"
            expected = theirs[kind][0].param_groups[0]
            assert float(group["lr"]) == pytest.approx(float(expected["lr"])), (t, group["name"])
            assert first_beta(group) == first_beta(expected), (t, group["name"])
            assert kind == "betas" or "betas" not in group
        scheduler.step()
        for optimizer, other in theirs.values():
            optimizer.step()
            other.step()


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_goes_on_to_the_bit_wherever_it_is_saved(name: str, as_tensor: bool) -> None:
    """It is saved right after the scheduler's step, where the groups hold what no step has seen."""

    def lr() -> Any:
        return torch.tensor(0.05) if as_tensor else 0.05

    params = weights()
    optimizer = all_rules(params, lr())
    scheduler = SCHEDULERS[name](optimizer)
    saved = []
    for t in range(STEPS):
        saved.append(copy.deepcopy((optimizer.state_dict(), scheduler.state_dict(), params)))
        step(params, optimizer, t)
        scheduler.step()
    for at in (0, 1, SAVED, STEPS - 1):
        state, of_scheduler, others = saved[at]
        loaded = all_rules(others, lr())
        made = SCHEDULERS[name](loaded)
        loaded.load_state_dict(state)
        made.load_state_dict(of_scheduler)
        for t in range(at, STEPS):
            step(others, loaded, t)
            made.step()
        for rule, param in params.items():
            assert torch.equal(param, others[rule]), (at, rule)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_made_after_loading_does_what_it_does_to_torchs(name: str, as_tensor: bool) -> None:
    """It begins its schedule, before its own state is loaded. So options are other ones for a step, as in torch."""

    def options(make: Callable[[dict[str, nn.Parameter]], torch.optim.Optimizer]) -> list[tuple[float, float]]:
        params = weights()
        optimizer = make(params)
        scheduler = SCHEDULERS[name](optimizer)
        for t in range(SAVED):
            step(params, optimizer, t)
            scheduler.step()
        params = weights()
        loaded = make(params)
        loaded.load_state_dict(optimizer.state_dict())
        made = SCHEDULERS[name](loaded)
        made.load_state_dict(scheduler.state_dict())
        seen = []
        for t in range(SAVED, STEPS):
            step(params, loaded, t)
            seen += [(round(float(group["lr"]), 9), first_beta(group)) for group in loaded.param_groups]
            made.step()
        return seen

    def lr() -> Any:
        return torch.tensor(0.05) if as_tensor else 0.05

    of_sgd = options(lambda params: torch.optim.SGD(params.values(), lr=lr(), momentum=0.95))
    of_adamw = options(lambda params: torch.optim.AdamW(params.values(), lr=lr(), betas=(0.9, 0.95)))
    for rule in ("dion", "muon", "normuon", "dion2", "dion3"):
        group = options(lambda params: Dion([{"params": [params["dion"]], "algorithm": rule}], lr=lr()))  # noqa: B023
        assert group == of_sgd, rule
    for rule in ("adamw", "lion"):
        group = options(lambda params: Dion([{"params": [params["dion"]], "algorithm": rule}], lr=lr()))  # noqa: B023
        assert group == of_adamw, rule


@pytest.mark.parametrize("betas", [None, (0.8, 0.9)])
@pytest.mark.parametrize("name", CYCLES)
def test_momentum_and_first_beta_cycle_together(name: str, betas: tuple[float, float] | None) -> None:
    params = weights()
    optimizer = all_rules(params, **({} if betas is None else {"betas": betas}))
    scheduler = SCHEDULERS[name](optimizer)
    seen = set()
    for t in range(STEPS):
        step(params, optimizer, t)
        (now,) = {first_beta(group) for group in optimizer.param_groups}
        seen.add(now)
        assert {group["betas"][1] for group in optimizer.param_groups if "betas" in group} == {(betas or (0, 0.95))[1]}
        scheduler.step()
    assert len(seen) > 3


@pytest.mark.parametrize("name", CYCLES)
def test_the_cycled_beta_is_the_one_that_updates(name: str) -> None:
    """Weights follow torch's AdamW under the same scheduler."""
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    matrix = nn.Parameter(torch.ones(3, 2))
    optimizer = Dion([{"params": [matrix]}, {"params": [ours], "algorithm": "adamw"}], betas=(0.9, 0.95))
    reference = torch.optim.AdamW([theirs], betas=(0.9, 0.95), weight_decay=0.01)
    schedulers = SCHEDULERS[name](optimizer), SCHEDULERS[name](reference)
    for t in range(STEPS):
        step({"m": matrix, "v": ours}, optimizer, t)
        theirs.grad = ours.grad
        reference.step()
        for scheduler in schedulers:
            scheduler.step()
    assert torch.equal(ours, theirs)


def test_a_new_plan_is_not_made_for_what_schedulers_change() -> None:
    params = weights()
    optimizer = all_rules(params)
    scheduler = SCHEDULERS["OneCycleLR"](optimizer)
    step(params, optimizer, 0)
    members = optimizer.members()
    for t in range(3):
        scheduler.step()
        step(params, optimizer, t)
        assert optimizer.members() is members


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("name", CYCLES)
def test_a_state_saved_under_a_scheduler_goes_through_a_distributed_checkpoint(
    name: str, after: bool, flat: bool, tmp_path: Path
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = Weights()
    params = dict(model.named_parameters())
    optimizer = all_rules(params)
    scheduler = SCHEDULERS[name](optimizer)
    for t in range(SAVED):
        step(params, optimizer, t)
        scheduler.step()
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)

    other = Weights()
    loaded = all_rules(dict(other.named_parameters()))
    if after:
        SCHEDULERS[name](loaded)
    state = {"optimizer": get_optimizer_state_dict(other, loaded, options=options)}
    dcp.load(state, checkpoint_id=tmp_path, planner=LoadPlanner(), no_dist=True)
    set_optimizer_state_dict(other, loaded, state["optimizer"], options=options)
    for group, saved in zip(loaded.param_groups, optimizer.param_groups, strict=True):
        momentum = saved.get("momentum", saved.get("betas", (None,))[0])  # which no step has taken over yet
        assert (group["lr"], first_beta(group)) == (saved["lr"], momentum)
        assert not {"momentum", "betas"} <= group.keys()
        assert flat or "max_momentum" in group


@pytest.mark.parametrize("below", [-1e-20, -1e-9, torch.tensor(-1e-9)])
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_rate_a_hair_below_zero_stops_neither_the_run_nor_its_resume(option: str, below: Any) -> None:
    params = weights()
    optimizer = all_rules(params)
    step(params, optimizer, 0)
    for group in optimizer.param_groups:
        group[option] = below
    step(params, optimizer, 1)
    theirs = weights()
    other = all_rules(theirs)
    other.load_state_dict(optimizer.state_dict())
    assert float(other.param_groups[0][option]) == float(below)
    step(theirs, other, 2)
    with pytest.raises(ValueError, match=f"{option} should be"):
        all_rules(weights(), **{option: below})
    optimizer.param_groups[0][option] = -0.01
    with pytest.raises(ValueError, match=rf"'{optimizer.param_groups[0]['name']}': {option} should be .* is -0.01"):
        step(params, optimizer, 2)
