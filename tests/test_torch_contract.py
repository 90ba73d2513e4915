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
from tests.support.all_rules import CLASSES, SAVED, SCHEDULERS, STEPS, all_rules, step, weights

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
            copied = copy.deepcopy(optimizer)
            (own,) = (p for group in copied.param_groups for p in group["params"])
            step({"w": param}, optimizer, 1)
            step({"w": own}, copied, 1)
            assert torch.equal(own, param)


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
    assert (other.param_groups[-1]["others"], other.param_groups[-1]["betas"]) == ("lion", (0.8, 0.9))
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
    """They are updated as in a group of their own. The groups remain those of the caller."""
    net, other = model(), model()
    with pytest.raises(ValueError, match="others='adamw'"):
        make(net.parameters(), lr=0.1)
    optimizer = make(net.named_parameters(), lr=0.1, others="adamw")
    named = list(other.named_parameters())
    groups = [{"params": [(n, p) for n, p in named if (p.ndim == 2) is matrices]} for matrices in (True, False)]
    expected = make([groups[0], {**groups[1], "algorithm": "adamw"}], lr=0.1)
    assert len(optimizer.param_groups) == 1
    rules = {row.parameter: row.rule for row in orthon.explain(optimizer).rows}
    assert rules == {n: make.algorithm if p.ndim == 2 else "adamw" for n, p in named}
    schedulers = [SCHEDULERS["OneCycleLR"](o) for o in (optimizer, expected)]
    for t in range(STEPS):
        for each, driven in ((net, optimizer), (other, expected)):
            step(dict(each.named_parameters()), driven, t)
        for scheduler in schedulers:
            scheduler.step()
        if t == SAVED:
            again = make(net.named_parameters(), others="adamw")
            again.load_state_dict(optimizer.state_dict())
            schedulers[0].optimizer, optimizer = again, again
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q), t
    for wrong in ("sgd", make.algorithm, 3):
        with pytest.raises(ValueError, match=f"{make.__name__}: others should be None or one of 'adamw', 'lion', but"):
            make(net.parameters(), others=wrong)


def test_others_in_groups_with_names_and_options_of_their_own() -> None:
    """As Hugging Face's trainer makes groups; and groups that come later, as Lightning's BaseFinetuning adds them."""
    net = model()
    named = dict(net.named_parameters())
    decayed = [(name, p) for name, p in named.items() if p.ndim > 1]
    plain = [(name, p) for name, p in named.items() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.3, "name": "decayed"}, {"params": plain, "weight_decay": 0.0}]
    optimizer = Muon(groups, lr=0.1, others="lion", betas=(0.8, 0.9))
    assert [(g["weight_decay"], g.get("name")) for g in optimizer.param_groups] == [(0.3, "decayed"), (0.0, None)]
    assert {g["betas"] for g in optimizer.param_groups} == {(0.8, 0.9)}
    later = nn.Linear(3, 2)
    optimizer.add_param_group({"params": [("l.w", later.weight), ("l.b", later.bias)], "lr": 0.7})
    assert len(optimizer.param_groups) == 3
    step({**named, "l.w": later.weight, "l.b": later.bias}, optimizer, 0)
    assert set(optimizer.state[later.bias]) == {"exp_avg"}
    assert set(optimizer.state[later.weight]) == {"momentum"}
    optimizer.param_groups[0]["betas"] = (2.0, 0.9)
    with pytest.raises(ValueError, match="param group 'decayed': betas should be two numbers"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"unknown option 'beta' for muon \(did you mean 'betas'\?\)"):
        optimizer.add_param_group({"params": [("x", nn.Parameter(torch.ones(2)))], "beta": 0.5})
    vector, matrix = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 2))
    of_group = Dion([{"params": [vector, matrix], "others": "adamw"}])
    step({"vector": vector, "matrix": matrix}, of_group, 0)
    assert set(of_group.state[vector]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(of_group.state[matrix]) == {"momentum", "Q"}
    stated = Dion2([{"params": [nn.Parameter(torch.ones(3))], "algorithm": "adamw"}], others="lion")
    assert "others" not in stated.param_groups[0]
    with pytest.raises(ValueError, match="updates matrices"):  # who names an algorithm means it
        Dion2([{"params": [nn.Parameter(torch.ones(3))], "algorithm": "dion2"}], others="lion")


@pytest.mark.filterwarnings("ignore:.*all param groups have the learning rate")  # one max_lr for all groups
def test_loggers_of_learning_rates() -> None:
    """Lightning's LearningRateMonitor, in its lines that matter: unique names, and momentum by `defaults`."""
    optimizer = Dion.for_model(model())
    scheduler = SCHEDULERS["OneCycleLR"](optimizer)
    for t in range(STEPS):
        step(dict(enumerate(optimizer.param_groups[0]["params"])), optimizer, t)
        names = [group["name"] for group in optimizer.param_groups]
        assert len(names) == len(set(names))
        use_betas = "betas" in optimizer.defaults
        for group in optimizer.param_groups:
            float(group["lr"])
            float(group["betas"][0] if use_betas else group.get("momentum", 0))
        scheduler.step()


def test_every_rule_for_matrices_has_a_class() -> None:
    assert sorted(make.algorithm for make in CLASSES) == sorted(n for n, r in RULES.items() if r.work.takes_matrices)
