"""Optimizers by name: `orthon.create` and `orthon.rules`, and two learning rates that are tied by a ratio."""

import copy
import gc
import io
import pickle
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon import Dion, Dion3, MixedOptimizer, Muon, Rule
from orthon.algorithms import RULES, Batch, Elementwise, WholeMatrix
from orthon.optimizers.by_name import class_of

EXAMPLE = Path(__file__).parents[1] / "examples" / "adamuon.py"


@pytest.fixture(autouse=True)
def forget_rules() -> Iterator[None]:
    """Begin without the rule of the example, and leave what was there."""
    known, module = dict(RULES), sys.modules.pop("adamuon", None)
    RULES.pop("adamuon", None)
    yield
    RULES.clear()
    RULES.update(known)
    sys.modules.pop("adamuon", None)
    if module is not None:
        sys.modules["adamuon"] = module


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 9))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = model(torch.arange(9)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def rates(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@pytest.mark.parametrize("name", orthon.rules())
def test_every_name_trains_a_model(name: str) -> None:
    net = model()
    optimizer = orthon.create(name, net)
    assert isinstance(optimizer, MixedOptimizer)
    assert optimizer.param_groups[0]["algorithm"] == ("dion3" if name == "nordion2" else name)
    losses = [step(net, optimizer) for _ in range(10)]
    assert losses[-1] < losses[0]
    copy.deepcopy(optimizer)


def test_it_is_for_model_of_the_class() -> None:
    net, other = model(), model()
    options: dict[str, Any] = {
        "rank_fraction": 0.25,
        "scalar_algorithm": "lion",
        "overrides": {"3.*": {"weight_decay": 0.5}},
    }
    optimizer = orthon.create("dion", net, 0.02, **options)
    expected = Dion.for_model(other, 0.02, **options)
    assert type(optimizer) is Dion
    assert orthon.explain(optimizer) == orthon.explain(expected)
    for _ in range(3):
        assert step(net, optimizer) == step(other, expected)
    assert orthon.create("Muon", net).defaults == Muon.for_model(net).defaults
    assert type(orthon.create("NorDion2", net)) is Dion3


def test_rules_from_outside_have_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "adamuon" not in orthon.rules()
    with pytest.raises(ValueError, match="'adamuon'"):
        orthon.create("adamuon", model())
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    __import__("adamuon")
    assert "adamuon" in orthon.rules()
    net = model()
    optimizer = orthon.create("adamuon", net, lr=1e-3, beta2=0.9)
    assert type(optimizer) is class_of("adamuon") is type(orthon.create("adamuon", model()))
    assert type(optimizer).__name__ == "Adamuon"
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["beta2"]) == (1e-3, 0.9)
    assert step(net, optimizer) > step(net, optimizer)
    with pytest.raises(TypeError, match=r"Adamuon: unexpected keyword argument 'rank_fraction' \(an option of dion\)"):
        orthon.create("adamuon", net, rank_fraction=0.5)


REFUSED: list[tuple[Any, ...]] = [
    ("dino", {}, ValueError, r"create: name should be one of 'adamw', 'dion', .* but is 'dino' \(did you mean 'dion'"),
    ("nor_muon", {}, ValueError, "did you mean 'normuon'"),
    ("shampoo", {}, ValueError, r"but is 'shampoo'$"),
    (Dion, {}, TypeError, "create: name should be one of .* but is <class"),
    ("dion", {"rank_frac": 0.5}, TypeError, r"unexpected .* 'rank_frac' \(did you mean 'rank_fraction'\?\)"),
    ("muon", {"rank_fraction": 0.5}, TypeError, r"'rank_fraction' \(an option of dion\)"),
    ("dion", {"lr": -1.0}, ValueError, "lr should be"),
    ("dion", {"scalar_algorithm": "adam"}, ValueError, "scalar_algorithm should be one of .* but is 'adam'"),
    ("dion", {"scalar_algorithm": "muon"}, ValueError, "scalar_algorithm should be one of 'adamw', 'lion', but is 'mu"),
    ("dion", {"scalar_algorithm": 3}, TypeError, "scalar_algorithm should be one of 'adamw', 'lion', but is 3"),
    ("dion", {"scalar_lr": 1.0, "scalar_lr_ratio": 1.0}, ValueError, "scalar_lr or scalar_lr_ratio, not both"),
    ("dion", {"scalar_lr_ratio": -0.1}, ValueError, "scalar_lr_ratio should be a number >= 0, but is -0.1"),
    ("dion", {"scalar_lr_ratio": "0.1"}, TypeError, "scalar_lr_ratio should be a number >= 0, but is '0.1'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "error", "message"), REFUSED)
def test_what_is_refused(name: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        orthon.create(name, model(), **options)


def test_a_list_of_parameters_is_refused() -> None:
    params: Any = model().parameters()
    with pytest.raises(TypeError, match="model should be a torch.nn.Module, but is a generator"):
        orthon.create("dion", params)


def test_a_whole_model_by_one_elementwise_rule() -> None:
    net, other = model(), model()
    optimizer, right = (
        orthon.create("adamw", net, lr=1e-3, weight_decay=0.0),
        torch.optim.AdamW(other.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    )
    for _ in range(3):
        assert step(net, optimizer) == step(other, right)


# What is given, and the rules and learning rates of the hidden matrices and of the rest.
WHOLE: list[tuple[str, dict[str, Any], tuple[str, float], tuple[str, float]]] = [
    ("adamw", {}, ("adamw", 3e-3), ("adamw", 3e-3)),
    ("adamw", {"lr": 1e-4}, ("adamw", 1e-4), ("adamw", 1e-4)),
    ("adamw", {"lr": 1e-4, "scalar_algorithm": "adamw"}, ("adamw", 1e-4), ("adamw", 1e-4)),
    ("adamw", {"lr": 1e-4, "scalar_algorithm": "lion"}, ("adamw", 1e-4), ("lion", 3e-4)),
    ("adamw", {"lr": 1e-4, "scalar_lr": 1e-2}, ("adamw", 1e-4), ("adamw", 1e-2)),
    ("adamw", {"lr": 1e-4, "scalar_lr_ratio": 0.5}, ("adamw", 1e-4), ("adamw", 5e-5)),
    ("lion", {}, ("lion", 3e-4), ("lion", 3e-4)),
    ("Lion", {"lr": 1e-5}, ("lion", 1e-5), ("lion", 1e-5)),
    ("lion", {"scalar_algorithm": "AdamW"}, ("lion", 3e-4), ("adamw", 3e-3)),
    ("steepest", {}, ("steepest", 0.01), ("steepest", 0.01)),
    ("steepest", {"lr": 0.5}, ("steepest", 0.5), ("steepest", 0.5)),
    ("whole", {"lr": 0.5}, ("whole", 0.5), ("adamw", 3e-3)),
    ("muon", {}, ("muon", 0.01), ("adamw", 3e-3)),
    ("muon", {"scalar_algorithm": "Lion"}, ("muon", 0.01), ("lion", 3e-4)),
]


@pytest.mark.parametrize(("name", "given", "matrices", "rest"), WHOLE)
def test_the_rule_and_the_learning_rate_of_the_rest(name: str, given: Any, matrices: Any, rest: Any) -> None:
    orthon.register_rule(Rule("steepest", steepest, {}, Elementwise(), {}))
    orthon.register_rule(Rule("whole", steepest, {}, WholeMatrix(), {}))
    made = [orthon.create(name, model(), **given)]
    if not any(word[:1].isupper() for word in (name, given.get("scalar_algorithm", ""))):
        made.append(class_of(name).for_model(model(), **given))
    for optimizer in made:
        found = {group["name"]: (group["algorithm"], group["lr"]) for group in optimizer.param_groups}
        assert found.pop("hidden matrices") == matrices
        assert found.keys() == {"embeddings", "norms and biases", "output head"}
        assert set(found.values()) == {rest}


def steepest(batch: Batch) -> None:
    batch.descend(batch.G)


def test_names_that_differ_by_case() -> None:
    def registered(name: str) -> None:
        orthon.register_rule(Rule(name, steepest, {}, Elementwise(), {}))

    registered("MyRule")
    for name in ("MyRule", "myrule", "MYRULE"):
        assert class_of(name).algorithm == "MyRule"
    registered("myrule")
    for name in ("MyRule", "myrule"):
        assert class_of(name).algorithm == name
    assert class_of("MyRule") is not class_of("myrule")
    with pytest.raises(ValueError, match=r"but is 'MYRULE' \(did you mean 'MyRule' or 'myrule'\?\)"):
        class_of("MYRULE")


def test_the_ratio_ties_both_learning_rates() -> None:
    for lr in (0.01, 0.04):
        assert rates(Dion.for_model(model(), lr)) == rates_of(lr, 3e-3)
        assert rates(Dion.for_model(model(), lr, scalar_algorithm="lion")) == rates_of(lr, 3e-4)
        assert rates(Dion.for_model(model(), lr, scalar_lr_ratio=0.5)) == rates_of(lr, 0.5 * lr)
        assert rates(orthon.create("muon", model(), lr, scalar_lr_ratio=0.5)) == rates_of(lr, 0.5 * lr)
    assert rates(Dion.for_model(model(), scalar_lr_ratio=0)) == rates_of(0.01, 0.0)
    overrides = {"4.weight": {"algorithm": "dion"}, "1.weight": {"algorithm": "adamw"}}
    moved = Dion.for_model(model(), 0.5, scalar_lr_ratio=0.5, overrides=overrides).param_groups
    assert {(group["algorithm"], group["lr"]) for group in moved} == {("dion", 0.5), ("adamw", 0.25)}


def rates_of(lr: float, scalar_lr: float) -> dict[str, float]:
    rest = dict.fromkeys(("embeddings", "norms and biases", "output head"), scalar_lr)
    return {"hidden matrices": lr, **rest}


def test_a_tensor_for_lr_makes_a_second_one() -> None:
    lr = torch.tensor(0.5)
    optimizer = Dion.for_model(model(), lr, scalar_lr_ratio=0.5)
    assert optimizer.param_groups[0]["lr"] is lr
    scalar = optimizer.param_groups[1]["lr"]
    assert isinstance(scalar, torch.Tensor)
    assert scalar == 0.25


def test_trials_in_one_process_leave_nothing_behind() -> None:
    """Each trial of a search makes a model and an optimizer; both must go when it ends."""

    def trial(name: str) -> list[weakref.ref[Any]]:
        net = model()
        optimizer = orthon.create(name, net, lr=0.01)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
        step(net, optimizer)
        scheduler.step()
        return [
            weakref.ref(each)
            for each in (optimizer, net, *net.parameters(), optimizer.state[net[1].weight]["momentum"])
        ]

    names = ["dion", "dion3", "muon"]
    first = [ref for name in names for ref in trial(name)]
    gc.collect()
    assert [ref() for ref in first] == [None] * len(first)
    before = counts()
    known = sorted(RULES)
    for _ in range(20):
        trial("dion")
    gc.collect()
    tensors, objects = counts()
    assert tensors <= before[0]
    assert objects - before[1] < 200  # after 20 trials; an optimizer alone has more objects than that
    assert sorted(RULES) == known


def counts() -> tuple[int, int]:
    """Return how many tensors and how many objects there are."""
    objects = gc.get_objects()
    return sum(issubclass(type(each), torch.Tensor) for each in objects), len(objects)


@pytest.mark.parametrize("name", ["dion", "adamw", "lion", "steepest", "my_rule", "MyRule"])
def test_optimizers_are_pickled(name: str) -> None:
    """Also where two rules have classes of one name."""
    for own in ("steepest", "my_rule", "MyRule"):
        orthon.register_rule(Rule(own, steepest, {}, Elementwise(), {}))
    net = model()
    optimizer = orthon.create(name, net)
    step(net, optimizer)
    written = io.BytesIO()
    torch.save((net, optimizer), written)
    written.seek(0)
    copies = [copy.deepcopy((net, optimizer)), torch.load(written, weights_only=False)]
    copies += [pickle.loads(pickle.dumps((net, optimizer), protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)]
    expected = step(net, optimizer), step(net, optimizer)
    for other_net, other in copies:
        assert type(other) is type(optimizer) is class_of(name)
        assert (step(other_net, other), step(other_net, other)) == expected
    assert pickle.loads(pickle.dumps(type(optimizer))) is type(optimizer)


class Mine(class_of("lion")):  # type: ignore[misc]
    """A class of somebody's own, which is pickled by its own name."""


def test_somebodys_class_of_such_a_rule_is_pickled() -> None:
    assert type(pickle.loads(pickle.dumps(Mine.for_model(model())))) is Mine


def test_a_rule_that_is_not_registered_is_said_when_unpickling() -> None:
    orthon.register_rule(Rule("steepest", steepest, {}, Elementwise(), {}))
    written = pickle.dumps(orthon.create("steepest", model()))
    del RULES["steepest"]
    with pytest.raises(ValueError, match="'steepest' is not; import the module that calls orthon.register_rule"):
        pickle.loads(written)
