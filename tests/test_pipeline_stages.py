"""Stages of a pipeline: tied weights, stages without what others have, and optimizers with nothing to do."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orthon import Dion, Muon, explain, param_groups
from tests.test_roles import D, Net, group_of


class Stage(nn.Module):
    def __init__(self, *, first: bool = False, last: bool = False, **config: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)
        if first:
            self.embed_tokens = nn.Embedding(32, D)
        if last:
            self.lm_head = nn.Linear(D, 32, bias=False)
        self.config = SimpleNamespace(**config)


def settings(model: nn.Module, name: str) -> dict[str, Any]:
    kept = ("algorithm", "lr", "weight_decay", "name")
    return {key: value for key, value in group_of(model, name).items() if key in kept}


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True, "vocab_size": 32},
        {"share_embeddings_and_output_weights": True},
        {"enable_weight_tying": True},
    ],
)
def test_both_ends_of_a_tied_weight_are_treated_alike(config: dict[str, Any]) -> None:
    first, last = Stage(first=True, **config), Stage(last=True, **config)
    assert settings(first, "embed_tokens.weight") == settings(last, "lm_head.weight")
    both = Stage(first=True, last=True, **config)
    both.lm_head.weight = both.embed_tokens.weight
    assert settings(both, "embed_tokens.weight") == settings(last, "lm_head.weight")


def test_the_weight_can_tell_that_it_is_tied() -> None:
    last = Stage(last=True)
    assert settings(last, "lm_head.weight")["weight_decay"] == 0.5
    last.lm_head.weight.shared_embedding = True  # as Megatron does
    assert settings(last, "lm_head.weight") == settings(Stage(first=True), "embed_tokens.weight")


def test_heads_that_are_not_tied_decay() -> None:
    tied = {"tie_word_embeddings": True}
    assert settings(Stage(first=True, last=True, **tied), "lm_head.weight")["weight_decay"] == 0.5  # it has both
    assert settings(Stage(last=True, **tied, vocab_size=77), "lm_head.weight")["weight_decay"] == 0.5  # a classifier's
    assert settings(Stage(last=True, tie_word_embeddings=False), "lm_head.weight")["weight_decay"] == 0.5


def test_stages_without_what_others_have_warn() -> None:
    stage = nn.Sequential(nn.LayerNorm(D), nn.LayerNorm(D))
    with pytest.warns(UserWarning, match="Dion.for_model: none of the 4 parameters of Sequential goes to 'dion'"):
        Dion.for_model(stage)
    with pytest.warns(UserWarning, match="the pattern 'lm_head.*' in overrides matches no parameter"):
        optimizer = Dion.for_model(Stage(first=True), overrides={"lm_head.*": {"lr": 0.1}})
    assert len(explain(optimizer).rows) == 3
    with pytest.warns(UserWarning, match="Sequential has no parameters that require gradients"):
        (group,) = param_groups(stage.requires_grad_(False), lr=0.25)
    assert (group["params"], group["algorithm"], group["lr"], group["name"]) == ([], "dion", 0.25, "hidden matrices")
    with pytest.warns(UserWarning, match="Sequential has no parameters that require gradients"):
        optimizer = Dion.for_model(stage)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not explain(optimizer).rows


def test_nothing_warns_without_need() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (Net(), Stage(last=True), nn.Sequential(nn.Linear(D, D), nn.ReLU())):
            Muon.for_model(model)


def test_placeholders_and_flat_parameters_get_the_way_out() -> None:
    model = nn.Linear(D, D)
    for param in model.parameters():
        param.data = torch.empty(0)
        param.ds_id, param.ds_shape = 0, (D, D)  # as ZeRO stage 3 leaves it
    with pytest.warns(UserWarning, match="as ZeRO stage 3 leaves them; shard the model with fully_shard"):
        Dion.for_model(model)
    flat = nn.Module()
    flat.flat_param = nn.Parameter(torch.ones(72))
    flat.flat_param._is_flat_param = True
    with pytest.raises(NotImplementedError, match=r"'flat_param': is a flat parameter.*fully_shard\(model\)"):
        Dion.for_model(flat)


def test_a_lazy_module_is_refused() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"parameter '1.weight': has no shape yet"):
        param_groups(model)
