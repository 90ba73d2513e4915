"""Numbers of steps and names: they come back from a state as they went into it, whatever has them on one side only."""

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion, Dion2, Dion3, MixedOptimizer

State = dict[str, Any]
SHAPE = (20, 24)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(SHAPE)) for _ in range(2)]


def optimizer_for(params: list[nn.Parameter], names: list[str] | None, rule: str = "dion2") -> MixedOptimizer:
    given: list[Any] = params if names is None else list(zip(names, params, strict=True))
    options = {"dion2": {"selection": "random"}, "dion3": {"selection": "random"}}.get(rule, {})
    return MixedOptimizer(given, algorithm=rule, options={"lr": 0.1, "weight_decay": 0.0, **options})


def step(params: list[nn.Parameter], optimizer: MixedOptimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(SHAPE, generator=generator)
    optimizer.step()


# Counters


COUNTERS: dict[str, Callable[[Tensor], object]] = {
    "as it is": lambda step: step,
    "bfloat16": lambda step: step.bfloat16(),
    "float16": lambda step: step.half(),
    "float64": lambda step: step.double(),
    "a float": float,
    "an int": int,
    "a fraction": lambda step: Fraction(int(step)),
}


@pytest.mark.parametrize("directly", [False, True])
@pytest.mark.parametrize("kind", COUNTERS)
@pytest.mark.parametrize("rule", ["dion2", "dion3", "adamw"])
def test_counters_are_float32(rule: str, kind: str, directly: bool) -> None:
    """Also where they are written into the state of an optimizer that has made no step with it."""
    params, others = parameters(), parameters()
    optimizer = optimizer_for(params, ["a", "b"], rule)
    step(params, optimizer, 0)
    for param in params:
        optimizer.state[param]["step"].fill_(256.0)
    saved = optimizer.state_dict()
    loaded = optimizer_for(others, ["a", "b"], rule)
    changed = {i: {**state, "step": COUNTERS[kind](state["step"].clone())} for i, state in saved["state"].items()}
    if directly:
        for param, state in zip(others, copy.deepcopy(changed).values(), strict=True):
            loaded.state[param] = state
    else:
        loaded.load_state_dict({**saved, "state": changed})
    with torch.no_grad():
        for param, other in zip(params, others, strict=True):
            other.copy_(param)
    for seed in range(1, 4):
        step(params, optimizer, seed)
        step(others, loaded, seed)
    for param, other in zip(params, others, strict=True):
        assert loaded.state[other]["step"].dtype == torch.float32
        assert loaded.state[other]["step"] == 259
        assert torch.equal(param, other)


@pytest.mark.parametrize(
    "bad", [-1.0, -3, float("nan"), float("inf"), torch.tensor(-1.0), torch.tensor(float("nan"))], ids=str
)
@pytest.mark.parametrize("rule", ["dion2", "adamw"])
def test_what_is_no_number_of_steps(rule: str, bad: object) -> None:
    params = parameters()
    optimizer = optimizer_for(params, ["a", "b"], rule)
    step(params, optimizer, 0)
    saved = optimizer.state_dict()
    saved["state"][1]["step"] = bad
    with pytest.raises(ValueError, match="parameter 'b': 'step' should be a number of steps, but is"):
        optimizer.load_state_dict(saved)


# Names


NAMED: list[tuple[list[str] | None, list[str] | None]] = [
    (["a", "b"], None),
    (None, ["a", "b"]),
    (None, None),
    (["a", "b"], ["a", "b"]),
    (["module.a", "module.b"], ["a", "_orig_mod.b"]),
    (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"]),  # torch.compile around DistributedDataParallel
    (["a", "b"], ["module._orig_mod.a", "module._orig_mod.b"]),
]


@pytest.mark.parametrize(("before", "after"), NAMED)
@pytest.mark.parametrize("rule", ["dion2", "dion3"])
def test_names_do_not_change_the_rows(rule: str, before: list[str] | None, after: list[str] | None) -> None:
    """A run that is saved and loaded twice goes on as one that is not."""
    params = parameters()
    whole = optimizer_for(params, before, rule)
    others = parameters()
    first = optimizer_for(others, before, rule)
    for seed in range(2):
        step(params, whole, seed)
        step(others, first, seed)
    second = optimizer_for(others, after, rule)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    third = optimizer_for(others, after, rule)
    for seed, (optimizer, following) in enumerate([(second, third), (third, None)], 2):
        step(params, whole, seed)
        step(others, optimizer, seed)
        if following is not None:
            following.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize(("before", "after"), NAMED)
def test_names_are_kept_as_torch_keeps_them(before: list[str] | None, after: list[str] | None) -> None:
    found = []
    for make in (lambda given: Dion(given), lambda given: torch.optim.SGD(given, momentum=0.9)):
        saved, loaded = (
            make(parameters() if names is None else list(zip(names, parameters(), strict=True)))
            for names in (before, after)
        )
        loaded.load_state_dict(saved.state_dict())
        found.append(loaded.param_groups[0].get("param_names"))
    ours, torchs = found
    if before and after:  # alike but for what wrappers add, of which torch takes the saved ones
        assert ours == after
    else:
        assert ours == torchs


def test_seeds_follow_their_parameters() -> None:
    """Into other groups, in another order, after a state without names."""
    params = parameters()
    unnamed, named = optimizer_for(params, None), optimizer_for(params, ["a", "b"])
    step(params, unnamed, 0)
    named.load_state_dict(unnamed.state_dict())
    apart = MixedOptimizer(
        [{"params": [("b", params[1])]}, {"params": [("a", params[0])]}],
        algorithm="dion2",
        options={"selection": "random"},
    )
    apart.load_state_dict(named.state_dict())
    seeds = [group["seed_names"] for group in apart.param_groups]
    assert seeds == [["param_groups[0]['params'][1]"], ["param_groups[0]['params'][0]"]]
    assert [member.seed_name for member in apart.members()] == [seed for [seed] in seeds]
    step(params, apart, 1)
    apart.load_state_dict(optimizer_for(params, ["a", "b"]).state_dict())  # of a run with names from the start
    assert not any("seed_names" in group for group in apart.param_groups)


# The side from which rows are selected


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize("known", [True, False])
def test_a_state_from_before_selection_side(shape: tuple[int, int], known: bool) -> None:
    """It goes on as it was written, from the shorter side; one with the option goes on with that."""

    def run(optimizer: Any, param: nn.Parameter, seeds: range) -> None:
        for seed in seeds:
            param.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    for side in ("short", "rows") if known else ("short",):
        w = nn.Parameter(torch.zeros(shape))
        optimizer = Dion3([("w", w)], selection_side=side)
        run(optimizer, w, range(2))
        saved = copy.deepcopy(optimizer.state_dict())
        if not known:
            del saved["param_groups"][0]["selection_side"]
        other = nn.Parameter(w.detach().clone())
        loaded = Dion3([("w", other)])
        assert loaded.param_groups[0]["selection_side"] == "rows"
        loaded.load_state_dict(saved)
        assert loaded.param_groups[0]["selection_side"] == side
        run(optimizer, w, range(2, 4))
        run(loaded, other, range(2, 4))
        assert torch.equal(w, other)


@pytest.mark.parametrize(("make", "expected"), [(Dion2, "short"), (Dion3, "rows")])
def test_the_side_by_default(make: type[Dion2] | type[Dion3], expected: str) -> None:
    w = nn.Parameter(torch.zeros(40, 8))
    optimizer = make([("w", w)], fraction=0.25, lr=1.0, weight_decay=0.0)
    assert optimizer.param_groups[0]["selection_side"] == expected
    w.grad = torch.randn(40, 8)
    optimizer.step()
    assert (w != 0).any(1).sum() == (10 if expected == "rows" else 40)
    assert (w != 0).any(0).sum() == (8 if expected == "rows" else 2)
    with pytest.raises(ValueError, match="selection_side should be one of .*'short'.*, but is 'columns'"):
        make([("w", w)], selection_side="columns")
