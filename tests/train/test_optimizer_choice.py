from typing import Any, get_args

import pytest
import torch

from orthon.train.errors import UserError
from orthon.train.model.build import build_model
from orthon.train.processes.ranks import Processes
from orthon.train.settings.model import ModelConfig
from orthon.train.settings.optimizer import OptimizerConfig, OptimizerName
from orthon.train.step.optimizers import DEFAULT_LR, build_mixed, build_optimizers, settle

ALONE = Processes(torch.device("cpu"))

NAMES = get_args(OptimizerName)
OF_MATRICES = ("dion", "dion2", "dion3", "muon", "normuon", "torch-muon")

SHAPE = ModelConfig(hidden_size=32, layers=2, heads=2, kv_heads=1, ffn=64, context=32).shape


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_updated_once(name: OptimizerName) -> None:
    model = build_model(SHAPE, 256, seed=0)
    optimizers = build_optimizers(model, OptimizerConfig(name=name, lr=0.01, scalar_lr=0.002), 3, ALONE)
    parameters = [p for one in optimizers.each for group in one.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    assert len(parameters) == len(list(model.parameters()))
    matrices = {id(p) for n, p in model.named_parameters() if "_proj" in n}
    orthonormal = {id(p) for p in optimizers.matrices}
    assert orthonormal == (matrices if name in OF_MATRICES else set())
    for optimizer in optimizers.each:
        for group in optimizer.param_groups:
            hidden = id(group["params"][0]) in matrices
            assert group["lr"] == (0.01 if hidden else 0.002)
            if hidden:
                assert group["weight_decay"] == 0.01

    optimizers.set_lr_factor(0.5)
    assert {group["lr"] for one in optimizers.each for group in one.param_groups} == {0.005, 0.001}
    before = [p.detach().clone() for p in model.parameters()]
    model(input_ids=torch.arange(16)[None]).logits.square().mean().backward()
    optimizers.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizers.state_bytes() > 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_filled_in_once(name: OptimizerName) -> None:
    fraction = {"dion": (0.25, None), "dion2": (None, 0.25), "dion3": (None, 0.25)}.get(name, (None, None))
    settled = settle(OptimizerConfig(name=name))
    assert (settled.rank_fraction, settled.fraction) == fraction
    assert settled.lr == DEFAULT_LR[name]
    assert settle(settled) == settled


def test_companions_are_equal() -> None:
    """Embeddings, head and norms are updated alike, whatever the rule for the matrices."""
    results = []
    for name in NAMES:
        model = build_model(SHAPE, 256, seed=0)
        optimizers = build_optimizers(model, OptimizerConfig(name=name), 0, ALONE)
        model(input_ids=torch.arange(16)[None]).logits.square().mean().backward()
        optimizers.step()
        results.append([p.detach() for n, p in model.named_parameters() if "_proj" not in n])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("dion", {"rank_fraction": 0.5}, {"right_factor": "orthonormalize"}),
        ("dion2", {}, {"fraction": 0.25, "selection": "global"}),
        ("dion2", {"fraction": 0.5}, {"selection": "random", "lr_scale_by_fraction": True}),
        ("dion3", {"fraction": 1.0}, {"beta2": 0.9, "selection": "local"}),
        ("muon", {}, {"nesterov": False, "polar": "newton_schulz", "polar_steps": 3, "polar_route": "owners"}),
        ("normuon", {}, {"beta2": 0.9, "ema": True, "eps": 1e-6}),
    ],
)
def test_settings_and_options_reach_the_matrices(
    name: OptimizerName, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    given = {key: value for key, value in options.items() if key != "fraction"}
    config = OptimizerConfig(name=name, **settings, options=given)
    optimizers = build_optimizers(build_model(SHAPE, 256, seed=0), config, 3, ALONE)
    [group] = [group for group in optimizers.each[0].param_groups if group["algorithm"] == name]
    expected = {"momentum": 0.8, "weight_decay": 0.01, "seed": 3, **settings, **options}
    assert {key: group[key] for key in expected} == expected


def test_options_reach_the_optimizer() -> None:
    model = build_model(SHAPE, 256, seed=0)
    muon = build_optimizers(model, OptimizerConfig(name="torch-muon", options={"ns_steps": 3}), 0, ALONE)
    assert muon.each[0].param_groups[0]["ns_steps"] == 3
    assert muon.each[0].param_groups[0]["momentum"] == 0.8
    for name in NAMES:
        with pytest.raises(UserError, match=f"optimizer {name}: .*no_such_option"):
            build_optimizers(model, OptimizerConfig(name=name, options={"no_such_option": 1}), 0, ALONE)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "torch-muon"])
def test_an_option_of_another_rule_is_refused_in_the_name_of_the_optimizer(name: OptimizerName) -> None:
    for option, of in {"tail": "dion", "amsgrad": "adamw"}.items():
        if name != of:
            config = OptimizerConfig(name=name, options={option: 0})
            with pytest.raises(UserError, match=f"(?i)optimizer {name}: {name}: .*'{option}' .an option of {of}"):
                build_mixed(build_model(SHAPE, 256, seed=0), config, 3, ALONE)


@pytest.mark.parametrize("name", NAMES)
def test_lists_reach_the_optimizer_as_tuples(name: OptimizerName) -> None:
    options: dict[str, Any] = {"betas": [0.7, 0.9]} if name != "torch-muon" else {"ns_coefficients": [3.0, -4.0, 2.0]}
    optimizer = build_optimizers(build_model(SHAPE, 256, seed=0), OptimizerConfig(name=name, options=options), 3, ALONE)
    [(key, value)] = options.items()
    assert tuple(value) in [group.get(key) for group in optimizer.each[0].param_groups]


def test_same_seed_same_model() -> None:
    first, again, other = (build_model(SHAPE, 256, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_dtypes_have_names() -> None:
    model = build_model(SHAPE, 256, seed=0)
    options = {"product_dtype": "bfloat16", "state_dtype": "float32"}
    (optimizer,) = build_optimizers(model, OptimizerConfig(options=options), 0, ALONE).each
    group = next(group for group in optimizer.param_groups if group["algorithm"] == "dion")
    assert (group["product_dtype"], group["state_dtype"]) == (torch.bfloat16, torch.float32)
    for bad in ("float16", "Tensor"):
        with pytest.raises(UserError, match=f"optimizer dion: .* should be None or one of .*, but is .*{bad}"):
            build_optimizers(model, OptimizerConfig(options={"product_dtype": bad}), 0, ALONE)
