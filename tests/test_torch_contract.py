"""What torch promises of optimizers and their groups, and what programs that drive them rely on."""

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import orthon
from orthon import Dion, Dion2, MatrixView, MixedOptimizer, Muon
from orthon.algorithms import RULES
from tests.support.all_rules import CLASSES, SCHEDULERS, all_rules, step, weights

# Groups


def test_empty_groups_are_taken() -> None:
    param = nn.Parameter(torch.ones(3, 2))
    for params, named in (([param], False), ([("w", param)], True)):
        for groups in ([{"params": []}, {"params": params}], [{"params": params}, {"params": [], "lr": 0.3}]):
            optimizer = Dion(groups)
            step({"w": param}, optimizer, 0)
            explained = str(orthon.explain(optimizer))
            assert "1 parameter" in explained
            assert all(("param_names" in group) is named for group in optimizer.param_groups)
            other = Dion([{**g, "params": list(g["params"])} for g in copy.deepcopy(groups)], lr=0.7)
            other.load_state_dict(optimizer.state_dict())
            assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]
            copy.deepcopy(optimizer).step()


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_an_optimizer_of_empty_groups(make: Any) -> None:
    optimizer = make([{"params": []}, {"params": [], "algorithm": "adamw"}])
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    param = nn.Parameter(torch.ones(3, 2))
    optimizer.add_param_group({"params": [("w", param)]})
    step({"w": param}, optimizer, 0)
    assert not torch.equal(param, torch.ones(3, 2))
    with pytest.raises(ValueError, match="empty"):  # as torch's
        make([])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_know_what_the_optimizer_was_told(how: str) -> None:
    params = weights()
    optimizer = all_rules(params, betas=(0.8, 0.9), others="lion")
    scheduler = SCHEDULERS["OneCycleLR"](optimizer)
    for t in range(3):
        step(params, optimizer, t)
        scheduler.step()
    pair = (params, optimizer)
    others, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert other.defaults == {**optimizer.defaults, "differentiable": False}  # which torch adds
    other.add_param_group({"params": [("v", nn.Parameter(torch.ones(3)))]})
    assert (other.param_groups[-1]["algorithm"], other.param_groups[-1]["betas"]) == ("lion", (0.8, 0.9))
    for t in range(3, 6):
        step(params, optimizer, t)
        step(others, other, t)
    assert all(torch.equal(params[name], others[name]) for name in params)


def test_hooks_come_where_torchs_come() -> None:
    calls: dict[str, list[str]] = {}
    for name, make in (("ours", Dion), ("theirs", torch.optim.SGD)):
        param, seen = nn.Parameter(torch.ones(3, 2)), calls.setdefault(name, [])
        optimizer = make([param])
        optimizer.register_step_pre_hook(lambda *_, seen=seen: seen.append("before step"))
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append("after step"))
        optimizer.register_state_dict_pre_hook(lambda _, seen=seen: seen.append("before state_dict"))
        optimizer.register_state_dict_post_hook(lambda *_, seen=seen: seen.append("after state_dict"))
        optimizer.register_load_state_dict_pre_hook(lambda *_, seen=seen: seen.append("before load"))
        optimizer.register_load_state_dict_post_hook(lambda _, seen=seen: seen.append("after load"))
        step({"w": param}, optimizer, 0)
        optimizer.load_state_dict(optimizer.state_dict())
    assert calls["ours"] == calls["theirs"]


def test_a_hook_may_change_options_before_a_step() -> None:
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = Dion([param], lr=0.1, weight_decay=0.0)
    optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=np.float32(0.0)))
    step({"w": param}, optimizer, 0)
    assert torch.equal(param, torch.ones(3, 2))


# The frameworks' doors


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_defaults_can_be_written_as_json(make: Any) -> None:
    param = nn.Parameter(torch.ones(4, 3))
    options = {
        "lr": torch.tensor(0.5),
        "weight_decay": np.float32(0.25),
        "betas": (0.8, 0.9),
        "state_dtype": torch.bfloat16,
        "view": MatrixView(blocks=(1, 3)),
        "momentum": torch.tensor(0.5),
    }
    optimizer = make([("w", param)], **options)
    written = json.loads(json.dumps(optimizer.defaults))
    assert (written["lr"], written["weight_decay"], written["momentum"]) == (0.5, 0.25, 0.5)
    assert written["state_dtype"] == "bfloat16"
    assert written["view"]["blocks"] == [1, 3]
    group = optimizer.param_groups[0]
    assert group["state_dtype"] is torch.bfloat16
    assert group["view"] == MatrixView(blocks=(1, 3))
    assert isinstance(group["lr"], Tensor)
    json.dumps(make([param]).defaults)
    json.dumps(MixedOptimizer([param], algorithm="adamw", options={}).defaults)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 2))


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_others_says_what_becomes_of_parameters_that_are_no_matrices(make: Any) -> None:
    net = model()
    with pytest.raises(ValueError, match="others='adamw'"):
        make(net.parameters(), lr=0.1)
    optimizer = make(net.parameters(), lr=0.1, others="adamw")
    found = {p: group["algorithm"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == set(net.parameters())
    assert {(p.ndim == 2, algorithm) for p, algorithm in found.items()} == {(True, make.algorithm), (False, "adamw")}
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    net(torch.ones(5, 3, 2)).square().sum().backward()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True) if p.grad.any())
    with pytest.raises(ValueError, match=f"{make.__name__}: others: .* should be one of 'adamw', .* but is 'sgd'"):
        make(net.parameters(), others="sgd")


def test_others_in_groups_with_names_and_options_of_their_own() -> None:
    """As Hugging Face's trainer makes groups; and groups that come later, as Lightning's BaseFinetuning adds them."""
    net = model()
    named = dict(net.named_parameters())
    decayed = [(name, p) for name, p in named.items() if p.ndim > 1]
    plain = [(name, p) for name, p in named.items() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.3, "name": "decayed"}, {"params": plain, "weight_decay": 0.0}]
    optimizer = Muon(groups, lr=0.1, others="lion")
    shown = [(g["algorithm"], g["weight_decay"], g.get("name"), g["param_names"]) for g in optimizer.param_groups]
    assert shown == [
        ("muon", 0.3, "decayed", ["2.weight", "4.weight"]),
        ("lion", 0.3, "decayed, no matrices", ["0.weight"]),
        ("lion", 0.0, None, [name for name, _ in plain]),
    ]
    later = nn.Linear(3, 2)
    optimizer.add_param_group({"params": [("l.w", later.weight), ("l.b", later.bias)], "lr": 0.7})
    assert [(g["algorithm"], g["lr"]) for g in optimizer.param_groups[3:]] == [("muon", 0.7), ("lion", 0.7)]
    count = len(optimizer.param_groups)
    with pytest.raises(ValueError, match="is given twice"):  # of the second part, before the first one is added
        optimizer.add_param_group({"params": [("x", nn.Parameter(torch.ones(2, 2))), ("b", later.bias)]})
    assert len(optimizer.param_groups) == count
    stated = Dion2([{"params": [nn.Parameter(torch.ones(3))], "algorithm": "adamw"}], others="lion")
    assert stated.param_groups[0]["algorithm"] == "adamw"
    with pytest.raises(ValueError, match="updates matrices"):  # who names an algorithm means it
        Dion2([{"params": [nn.Parameter(torch.ones(3))], "algorithm": "dion2"}], others="lion")


def test_every_rule_for_matrices_has_a_class() -> None:
    assert sorted(make.algorithm for make in CLASSES) == sorted(n for n, r in RULES.items() if r.work.takes_matrices)
