import pytest
import torch

from orthon.train.config import ModelConfig, OptimizerConfig, OptimizerName
from orthon.train.errors import UserError
from orthon.train.model import build_model
from orthon.train.optimizers import build_optimizers
from orthon.train.ranks import Ranks

ALONE = Ranks(torch.device("cpu"))

SHAPE = ModelConfig(hidden_size=32, layers=2, heads=2, kv_heads=1, ffn=64, context=32).shape


@pytest.mark.parametrize("name", ["dion", "torch-muon", "adamw", "lion"])
def test_every_parameter_is_updated_once(name: OptimizerName) -> None:
    model = build_model(SHAPE, 256, seed=0)
    optimizers = build_optimizers(model, OptimizerConfig(name=name, lr=0.01, scalar_lr=0.002), 0, ALONE)
    parameters = [p for one in optimizers.each for group in one.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    assert len(parameters) == len(list(model.parameters()))
    matrices = {id(p) for n, p in model.named_parameters() if "_proj" in n}
    orthonormal = {id(p) for p in optimizers.matrices}
    assert orthonormal == (matrices if name in ("dion", "torch-muon") else set())
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


def test_companions_are_equal() -> None:
    """Embeddings, head and norms are updated alike, whatever the rule for the matrices."""
    results = []
    for name in ("dion", "torch-muon", "adamw", "lion"):
        model = build_model(SHAPE, 256, seed=0)
        optimizers = build_optimizers(model, OptimizerConfig(name=name), 0, ALONE)
        model(input_ids=torch.arange(16)[None]).logits.square().mean().backward()
        optimizers.step()
        results.append([p.detach() for n, p in model.named_parameters() if "_proj" not in n])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_options_reach_the_optimizer() -> None:
    model = build_model(SHAPE, 256, seed=0)
    config = OptimizerConfig(rank_fraction=0.5, options={"right_factor": "orthonormalize"})
    optimizers = build_optimizers(model, config, 0, ALONE)
    group = next(g for g in optimizers.each[0].param_groups if g["algorithm"] == "dion")
    chosen = {"rank_fraction": 0.5, "momentum": 0.8, "right_factor": "orthonormalize"}
    assert {key: group[key] for key in chosen} == chosen
    muon = build_optimizers(model, OptimizerConfig(name="torch-muon", options={"ns_steps": 3}), 0, ALONE)
    assert muon.each[0].param_groups[0]["ns_steps"] == 3
    assert muon.each[0].param_groups[0]["momentum"] == 0.8
    for name in ("dion", "torch-muon", "adamw", "lion"):
        with pytest.raises(UserError, match=f"optimizer {name}: .*no_such_option"):
            build_optimizers(model, OptimizerConfig(name=name, options={"no_such_option": 1}), 0, ALONE)


def test_same_seed_same_model() -> None:
    first, again, other = (build_model(SHAPE, 256, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
