"""Keys of param groups: those of others are left to them, and what is meant as an option is one."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import orthon
from orthon import Dion, MixedOptimizer
from orthon.algorithms import RULES
from orthon.algorithms.names import mistaken
from orthon.saving import LoadPlanner
from tests.support.all_rules import CLASSES, Weights, all_rules, step, weights
from tests.support.doc_blocks import ROOT

FOREIGN: dict[str, Any] = {
    "initial_wd": 0.1,
    "lr_mult": 0.5,
    "kind": "backbone",
    "lr_scale": 0.25,
    "weight_decay_mult": 2,
    "layer_id": 3,
    "tags": {"owner": ["timm"]},
    "differentiable": False,
    "foreach": True,
    "fused": False,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("key", FOREIGN)
def test_keys_of_others_are_kept_saved_and_loaded(rule: str, key: str) -> None:
    def make(**extra: Any) -> MixedOptimizer:
        return Dion([{"params": [("w", nn.Parameter(torch.ones(4, 3)))], "algorithm": rule, **extra}])

    def torchs(**extra: Any) -> torch.optim.SGD:
        return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(4, 3))], **extra}])

    own = key in RULES[rule].options  # a hint that AdamW follows is this optimizer's own
    for build in (make, torchs):
        optimizer = build(**{key: FOREIGN[key]})
        optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 3)
        optimizer.step()
        assert optimizer.param_groups[0][key] == FOREIGN[key]
        saved = optimizer.state_dict()
        assert saved["param_groups"][0][key] == FOREIGN[key]
        other = build()
        other.load_state_dict(saved)
        if not (own and build is make):
            assert other.param_groups[0][key] == FOREIGN[key]
        for change in ("later", "copied"):
            again = build() if change == "later" else copy.deepcopy(optimizer)
            again.param_groups[0][key] = FOREIGN[key]
            again.param_groups[0]["params"][0].grad = torch.ones(4, 3)
            again.step()
            assert again.param_groups[0][key] == FOREIGN[key]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_keys_of_others_go_through_a_distributed_checkpoint(tmp_path: Path) -> None:
    model, other = Weights(), Weights()
    optimizer, loaded = (all_rules(dict(net.named_parameters())) for net in (model, other))
    step(dict(model.named_parameters()), optimizer, 0)
    optimizer.param_groups[1].update(FOREIGN)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path, no_dist=True)
    state = {"optimizer": get_optimizer_state_dict(other, loaded)}
    dcp.load(state, checkpoint_id=tmp_path, planner=LoadPlanner(), no_dist=True)
    set_optimizer_state_dict(other, loaded, state["optimizer"])
    assert {key: loaded.param_groups[1][key] for key in FOREIGN} == FOREIGN
    assert not FOREIGN.keys() - {"foreach", "fused"} & loaded.param_groups[0].keys()


def test_keys_of_others_that_differ_within_a_new_group() -> None:
    """Options must be one value there. What others have put into groups is left out where it differs."""
    pairs = [(name, nn.Parameter(torch.ones(4, 3))) for name in "ab"]
    saved = Dion([{"params": [pair], "kind": pair[0], "layer": 3} for pair in pairs]).state_dict()
    optimizer = Dion([{"params": pairs, "kind": "both"}])
    optimizer.load_state_dict(saved)
    assert (optimizer.param_groups[0]["kind"], optimizer.param_groups[0]["layer"]) == ("both", 3)


MISTAKEN = [
    ("dion", "beta", r"did you mean 'beta2' of dion3, normuon or 'betas' of adamw, lion\?"),
    ("adamw", "beta", r"did you mean 'betas'\?"),
    ("dion", "rank_frac", r"did you mean 'rank_fraction'\?"),
    ("dion", "rank", r"did you mean 'rank_fraction' or 'rank_multiple_of'\?"),
    ("muon", "polar_step", r"did you mean 'polar_steps'\?"),
    ("dion", "weight_deacy", r"did you mean 'weight_decay'\?"),
    ("adamw", "rank_fraction", "an option of dion"),
    ("adamw", "momentum", "an option of dion, dion2, dion3, muon, normuon"),
    ("dion", "betas", "an option of adamw, lion"),
    ("dion", "lr_scale", "called 'adjust_lr_fn' now, as in torch.optim.Muon"),
]


@pytest.mark.parametrize(("rule", "key", "meant"), MISTAKEN, ids=[f"{rule}, {key}" for rule, key, _ in MISTAKEN])
def test_what_resembles_an_option_is_refused(rule: str, key: str, meant: str) -> None:
    value = "none" if key == "lr_scale" else 0.5
    wrong = {"params": [nn.Parameter(torch.ones(4, 3))], "algorithm": rule, "name": "mine", key: value}
    message = rf"Dion: param group 'mine': unknown option '{key}' for {rule} \({meant}\); it takes "
    with pytest.raises(ValueError, match=message):
        Dion([wrong])
    optimizer = Dion([{**wrong, key: 0.5} if key == "lr_scale" else {k: v for k, v in wrong.items() if k != key}])
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    if key == "momentum":  # as a scheduler sets it
        return
    optimizer.param_groups[0].update({key: value, "lr": 0.5})
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4, 3)
    if key != "lr_scale":
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert torch.equal(optimizer.param_groups[0]["params"][0], before)


THEIRS = [
    ("use_muon", False, "muon", "a group says it by 'algorithm', such as 'muon' or 'adamw'"),
    ("mu", 0.9, "muon", "called 'momentum' here"),
    ("ef_decay", 0.9, "dion2", "called 'momentum' here"),
    ("mu", 0.9, "adamw", "called 'momentum' here, an option of dion, dion2, dion3, muon, normuon"),
    ("epsilon", 1e-8, "adamw", "called 'eps' here"),
    ("epsilon", 1e-8, "dion", "called 'eps' here, an option of adamw, dion3, normuon"),
    ("adamw_eps", 1e-8, "adamw", "called 'eps' here"),
    ("learning_rate", 0.1, "dion", "called 'lr' here"),
    ("wd", 0.1, "dion", "called 'weight_decay' here"),
    ("beta1", 0.9, "adamw", "called 'betas' here"),
    ("adamw_betas", (0.9, 0.95), "adamw", "called 'betas' here"),
    ("muon_beta2", 0.9, "normuon", "called 'beta2' here"),
    ("ns_steps", 5, "muon", "called 'polar_steps' here"),
    ("ns_coefficients", (1, 2, 3), "muon", "called 'polar' here"),
    ("cautious_wd", True, "muon", "called 'cautious_weight_decay' here"),
    ("power_iters", 1, "dion", "called 'power_iterations' here"),
    ("adjust_lr", "spectral_norm", "dion", "called 'adjust_lr_fn' here"),
    ("selection_scope", "local", "dion2", "called 'selection' here"),
    ("flatten", True, "muon", "called 'view' here"),
    ("num_heads", 4, "muon", "called 'view' here"),
    ("mixed_precision_config", None, "dion", "called 'state_dtype' here"),
    ("oversample", 1.25, "dion", "there is one method to make columns orthonormal"),
    ("outer_shard_mesh", None, "dion", "meshes are read off the parameters"),
]


@pytest.mark.parametrize(
    ("key", "value", "rule", "meant"), THEIRS, ids=[f"{key}, {rule}" for key, _, rule, _ in THEIRS]
)
def test_what_other_packages_call_an_option(key: str, value: Any, rule: str, meant: str) -> None:
    """In a group when it is made, added or changed, and as a keyword argument."""
    param = nn.Parameter(torch.ones(4, 3))
    group = {"params": [param], "algorithm": rule}
    message = rf"Dion: param group \d: unknown option '{key}' for {rule} \({meant}.*\); it takes "
    with pytest.raises(ValueError, match=message):
        Dion([{**group, key: value}])
    optimizer = Dion([{"params": [nn.Parameter(torch.ones(2, 2))]}])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({**group, key: value})
    optimizer.add_param_group(group)
    optimizer.param_groups[1][key] = value
    param.grad = torch.ones(4, 3)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    for make in (lambda: Dion([param], **{key: value}), lambda: orthon.Muon.for_model(nn.Linear(3, 4), **{key: value})):
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{key}' \({meant.split(' here')[0]}"):
            make()


def test_the_tables_of_the_pages_are_known() -> None:
    """Each name of another package in docs/move/ that is none here, but for what is kept: `differentiable`."""
    for page in ("adamw", "torch_muon", "keller_jordan", "microsoft_dion"):
        text = (ROOT / "docs" / "move" / f"{page}.md").read_text(encoding="utf-8")
        firsts = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        names = {name for first in firsts for name in re.findall(r"`([a-z]\w*)(?:=.*?)?`", first)}
        assert names
        for name in names - {"params", "differentiable"}:
            is_option = any(name in rule.options for rule in RULES.values())
            assert is_option or mistaken(name, None, RULES["dion"].options), f"{page}: {name}"


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_the_old_name_of_adjust_lr_fn(make: Any) -> None:
    param = nn.Parameter(torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"'lr_scale' \(called 'adjust_lr_fn' now, as in torch.optim.Muon\)"):
        make([param], lr_scale="none")
    with pytest.raises(ValueError, match="'adjust_lr_fn' now"):
        MixedOptimizer([param], algorithm=make.algorithm, options={"lr_scale": "none"})
    with pytest.raises(ValueError, match="'adjust_lr_fn' now"):
        make([{"params": [param], "lr_scale": "none"}])
    saved = make([param], adjust_lr_fn="original").state_dict()
    saved["param_groups"][0]["lr_scale"] = saved["param_groups"][0].pop("adjust_lr_fn")
    other = make([param])
    other.load_state_dict(saved)
    assert other.param_groups[0]["adjust_lr_fn"] == "original"
    for name in ("original", "match_rms_adamw"):  # which torch.optim.Muon takes
        assert make([param], adjust_lr_fn=name).param_groups[0]["adjust_lr_fn"] == name


def test_recipes_with_a_number_called_lr_scale() -> None:
    """As timm's schedulers, and those of MAE, BEiT and ConvNeXt, do."""
    params = weights()
    optimizer = all_rules(params)
    for index, group in enumerate(optimizer.param_groups):
        group["lr_scale"] = 0.5**index
    for t in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + t) * group["lr_scale"] if "lr_scale" in group else 0.1
        step(params, optimizer, t)
    other = all_rules(weights())
    other.load_state_dict(optimizer.state_dict())
    assert [g["lr_scale"] for g in other.param_groups] == [0.5**i for i in range(len(RULES))]


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("hint", [{"foreach": True}, {"fused": False, "foreach": None}, {"foreach": False}])
def test_hints_of_torchs_optimizers(make: Any, hint: dict[str, Any]) -> None:
    """As torchtitan gives them, to the class and in groups. They change nothing about a rule for matrices."""
    results = []
    for given, in_group in (({}, {}), (hint, {}), ({}, hint)):
        param = nn.Parameter(torch.ones(4, 3))
        optimizer = make([{"params": [param], **in_group}], **given)
        step({"w": param}, optimizer, 0)
        results.append(param)
    assert all(torch.equal(results[0], other) for other in results)
    optimizer = make([{"params": [nn.Parameter(torch.ones(3))], "algorithm": "adamw"}], **hint)
    assert {name: optimizer.param_groups[0][name] for name in hint} == hint
    with pytest.raises(TypeError, match="foreach should be True, False or None"):
        make([nn.Parameter(torch.ones(3, 2))], foreach="yes")
