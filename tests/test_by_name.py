"""Optimizers by name: `orthon.create` and `orthon.rules`, and two learning rates that are tied by a ratio."""

import copy
import gc
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
from orthon import Dion, Dion3, MixedOptimizer, Muon
from orthon.algorithms import RULES
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
        orthon.create("adamw", net, lr=1e-3, scalar_lr_ratio=1.0, weight_decay=0.0),
        torch.optim.AdamW(other.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    )
    for _ in range(3):
        assert step(net, optimizer) == step(other, right)
    assert set(rates(orthon.create("adamw", net)).values()) == {3e-3}
    assert set(rates(orthon.create("lion", net, scalar_algorithm="lion")).values()) == {3e-4}


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


def test_classes_of_named_rules_are_pickled_by_their_own_names() -> None:
    optimizer = orthon.create("dion", model())
    assert type(pickle.loads(pickle.dumps(optimizer))) is Dion
