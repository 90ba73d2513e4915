"""States of optimizers made with `others`, and of ones with a group for each algorithm: which load into the other."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from orthon import Dion, Dion3, MixedOptimizer, Muon
from orthon.saving import LoadPlanner
from tests.support.all_rules import CLASSES, step

Named = list[tuple[str, nn.Parameter]]


def weights(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (3, 4), "b.bias": (3,), "conv": (2, 3, 3)}
    return {name: nn.Parameter(torch.randn(*shape, generator=generator)) for name, shape in shapes.items()}


def divided(params: dict[str, nn.Parameter]) -> tuple[Named, Named]:
    """Return the matrices and the others."""
    matrices = [pair for pair in params.items() if pair[1].ndim == 2]
    return matrices, [pair for pair in params.items() if pair[1].ndim != 2]


def as_one_group(make: Any, params: dict[str, nn.Parameter], **options: Any) -> MixedOptimizer:
    optimizer: MixedOptimizer = make(params.items(), others="adamw", **options)
    return optimizer


def with_groups(make: Any, params: dict[str, nn.Parameter], **options: Any) -> MixedOptimizer:
    matrices, others = divided(params)
    groups = [{"params": matrices}, {"params": others, "algorithm": "adamw"}]
    optimizer: MixedOptimizer = make(groups, **options)
    return optimizer


def as_two_groups(make: Any, params: dict[str, nn.Parameter], *, named: bool = True, **options: Any) -> MixedOptimizer:
    """Return an optimizer with groups of matrices and of others, none of which names its algorithm."""
    groups = [{"params": pairs if named else [p for _, p in pairs]} for pairs in divided(params)]
    optimizer: MixedOptimizer = make(groups, others="adamw", **options)
    return optimizer


FORMS = [as_one_group, with_groups, as_two_groups]


@pytest.mark.parametrize("there", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("here", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_with_names_each_form_loads_into_each(make: Any, here: Any, there: Any) -> None:
    """The run goes on to the bit, with the options that were saved."""
    params = weights()
    optimizer = here(make, params, lr=0.1, betas=(0.8, 0.9), weight_decay=0.1)
    for t in range(3):
        step(params, optimizer, t)
    state, own = copy.deepcopy((optimizer.state_dict(), params))
    loaded = there(make, own)
    loaded.load_state_dict(state)
    assert {group["lr"] for group in loaded.param_groups} == {0.1}
    assert loaded.param_groups[-1]["betas"] == (0.8, 0.9)
    for t in range(3, 6):
        step(params, optimizer, t)
        step(own, loaded, t)
    for name, param in params.items():
        assert torch.equal(param, own[name]), name
    back = here(make, own)
    back.load_state_dict(loaded.state_dict())


def test_without_names_groups_that_match_one_to_one_load() -> None:
    """As torch has it: the groups have the same sizes, so the positions decide."""
    params = weights()
    optimizer = as_two_groups(Muon, params, named=False, betas=(0.8, 0.9))
    step(params, optimizer, 0)
    explicit = with_groups(Muon, weights())
    explicit.load_state_dict(optimizer.state_dict())
    assert explicit.param_groups[1]["betas"] == (0.8, 0.9)
    assert "momentum" not in explicit.param_groups[1]
    again = as_two_groups(Muon, weights(), named=False)
    again.load_state_dict(explicit.state_dict())
    assert [g["algorithm"] for g in again.param_groups] == ["muon", "muon"]


@pytest.mark.parametrize("named", [(False, False), (True, False), (False, True)])
def test_without_names_on_both_sides_other_groups_are_an_error_with_the_way_out(named: tuple[bool, bool]) -> None:
    params, other = weights(), weights()
    optimizer = Muon(params.items() if named[0] else params.values(), others="adamw")
    step(params, optimizer, 0)
    groups: list[dict[str, Any]] = [
        {"params": pairs if named[1] else [p for _, p in pairs]} for pairs in divided(other)
    ]
    loaded = Muon([groups[0], {**groups[1], "algorithm": "adamw"}])
    message = r"Muon: .* have \[2, 3\] parameters, but have \[5\]; groups of other .* model.named_parameters"
    with pytest.raises(ValueError, match=message):
        loaded.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"have \[5\] parameters, but have \[2, 3\]; groups of other sizes"):
        optimizer.load_state_dict(loaded.state_dict())
    assert not loaded.state
    # The way out: names, by way of an optimizer with the same groups.
    between = as_one_group(Muon, params)
    between.load_state_dict(optimizer.state_dict())
    explicit = with_groups(Muon, other)
    explicit.load_state_dict(between.state_dict())
    assert torch.equal(explicit.state[other["conv"]]["exp_avg"], optimizer.state[params["conv"]]["exp_avg"])


def test_a_group_takes_one_value_of_each_option_that_both_algorithms_have() -> None:
    params = weights()
    explicit = with_groups(Muon, params)
    explicit.param_groups[1]["lr"] = 0.003
    step(params, explicit, 0)
    one = as_one_group(Muon, weights())
    message = "lr should be one value, but was saved as .* for 'a.weight' and as 0.003 for 'a.bias'; put them into diff"
    with pytest.raises(ValueError, match=message):
        one.load_state_dict(explicit.state_dict())
    two = as_two_groups(Muon, weights())
    two.load_state_dict(explicit.state_dict())
    assert two.param_groups[1]["lr"] == 0.003


def test_a_state_of_a_model_loads_into_the_class_form_with_groups_like_it() -> None:
    """`for_model` divides the parameters otherwise. Here no algorithm and no option differs within a group."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))
    own, other = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = Dion.for_model(model, scalar_lr=0.01)
    assert {group["name"] for group in optimizer.param_groups} == {"hidden matrices", "norms and biases"}
    by_class = Dion([{"params": [(n, p)]} for n, p in own.named_parameters()], others="adamw")
    named = dict(model.named_parameters())
    for t in range(2):
        step(named, optimizer, t)
    by_class.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    own.load_state_dict(model.state_dict())
    back = Dion.for_model(other, scalar_lr=0.5)
    back.load_state_dict(copy.deepcopy(by_class.state_dict()))
    other.load_state_dict(model.state_dict())
    for net, driven in ((model, optimizer), (own, by_class), (other, back)):
        step(dict(net.named_parameters()), driven, 2)
    for p, q, r in zip(model.parameters(), own.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)
    assert back.param_groups[-1]["lr"] == 0.01


@pytest.mark.parametrize(("saved", "own"), [("adamw", "lion"), ("lion", "adamw")])
@pytest.mark.parametrize("form", ["one group", "groups"])
def test_another_algorithm_for_the_others_is_an_error(form: str, saved: str, own: str) -> None:
    params, other = weights(), weights()
    optimizer = Dion3(list(params.items()), others=saved)
    step(params, optimizer, 0)
    matrices, others = divided(other)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "algorithm": own}]
    loaded = Dion3(list(other.items()), others=own) if form == "one group" else Dion3(groups)
    with pytest.raises(ValueError, match=f"algorithm should be '{own}', but was saved as '{saved}'"):
        loaded.load_state_dict(optimizer.state_dict())
    assert not loaded.state


@pytest.mark.parametrize("wrong", [None, ["adamw"], 3, "sgd"])
@pytest.mark.parametrize("key", ["algorithm", "others"])
def test_saved_names_of_algorithms_that_are_none(key: str, wrong: object) -> None:
    params = weights()
    optimizer = as_one_group(Muon, params)
    step(params, optimizer, 0)
    state = optimizer.state_dict()
    state["param_groups"][0][key] = wrong
    for form in FORMS:
        loaded = form(Muon, weights())
        with pytest.raises(ValueError, match=r"algorithm should be .*, but was saved as|unknown option '\w+' for muon"):
            loaded.load_state_dict(copy.deepcopy(state))
        assert not loaded.state


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("flat", [False, True])
def test_a_state_with_others_goes_through_a_distributed_checkpoint(flat: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    other = copy.deepcopy(model)
    optimizer, loaded = (
        Muon(net.named_parameters(), lr=lr, others="adamw") for net, lr in ((model, 0.1), (other, 0.7))
    )
    step(dict(model.named_parameters()), optimizer, 0)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    state = {"optimizer": get_optimizer_state_dict(other, loaded, options=options)}
    dcp.load(state, checkpoint_id=tmp_path, planner=LoadPlanner(), no_dist=True)
    set_optimizer_state_dict(other, loaded, state["optimizer"], options=options)
    assert (loaded.param_groups[0]["others"], loaded.param_groups[0]["lr"]) == ("adamw", 0.1)
    for param, there in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[param].items():
            assert torch.equal(value, loaded.state[there][key]), key
