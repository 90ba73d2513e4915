"""Adapters of PEFT: LoRA, layers that are trained as a whole, trainable tokens, rotations.

The classes here have the names and the attributes of PEFT's. The package itself is in `test_peft.py`.
"""

from typing import Any

import pytest
import torch
from torch import nn

from orthon import Dion, Dion3, Muon, explain, param_groups

D, RANK = 64, 4


class BaseTunerLayer:
    """The base of PEFT's layers with adapters."""


class LoraLinear(nn.Module, BaseTunerLayer):
    def __init__(self, base: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.lora_magnitude_vector = nn.ModuleDict()


class LoraEmbedding(nn.Module, BaseTunerLayer):
    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_embedding_A = nn.ParameterDict({"default": torch.randn(RANK, base.num_embeddings)})
        self.lora_embedding_B = nn.ParameterDict({"default": torch.randn(base.embedding_dim, RANK)})


class ModulesToSaveWrapper(nn.Module):
    def __init__(self, module: nn.Module, copy: nn.Module) -> None:
        super().__init__()
        self.original_module = module.requires_grad_(False)
        self.modules_to_save = nn.ModuleDict({"default": copy})


class BaseTuner(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class PeftModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = BaseTuner(model)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = LoraEmbedding(nn.Embedding(50, D))
        self.q_proj = LoraLinear(nn.Linear(D, D))
        self.conv = nn.Module()
        self.conv.lora_A = nn.ModuleDict({"default": nn.Conv2d(8, RANK, 3, bias=False)})
        self.conv.lora_B = nn.ModuleDict({"default": nn.Conv2d(RANK, 16, 1, bias=False)})
        self.rank_one = LoraLinear(nn.Linear(D, D), 1)
        self.dora = nn.Module()
        self.dora.lora_magnitude_vector = nn.ModuleDict({"default": nn.Linear(D, 1, bias=False)})
        self.classifier = ModulesToSaveWrapper(nn.Linear(D, 3), nn.Linear(D, 3))
        self.tokens = nn.Module()
        self.tokens.trainable_tokens_delta = nn.ParameterDict({"default": torch.randn(5, D)})
        self.turned = nn.Module()
        self.turned.oft_R = nn.ParameterDict({"default": torch.randn(4, 6)})
        self.turned_too = nn.Module()
        self.turned_too.oft_R = nn.ModuleDict({"default": nn.ParameterDict({"weight": torch.randn(4, 6)})})


EXPECTED = {
    "embed.lora_embedding_A.default": ("adamw", "embeddings"),
    "embed.lora_embedding_B.default": ("dion", "LoRA factors"),
    "q_proj.lora_A.default.weight": ("dion", "LoRA factors"),
    "q_proj.lora_B.default.weight": ("dion", "LoRA factors"),
    "conv.lora_A.default.weight": ("dion", "LoRA factors 2"),
    "conv.lora_B.default.weight": ("dion", "LoRA factors 2"),
    "rank_one.lora_A.default.weight": ("adamw", "one-line matrices"),
    "rank_one.lora_B.default.weight": ("adamw", "one-line matrices"),
    "dora.lora_magnitude_vector.default.weight": ("adamw", "norms and biases"),
    "classifier.modules_to_save.default.weight": ("adamw", "output head"),
    "classifier.modules_to_save.default.bias": ("adamw", "norms and biases"),
    "tokens.trainable_tokens_delta.default": ("adamw", "embeddings"),
    "turned.oft_R.default": ("adamw", "rotations"),
    "turned_too.oft_R.default.weight": ("adamw", "rotations"),
}


def found(model: nn.Module, **options: Any) -> dict[str, tuple[str, str]]:
    groups = param_groups(model, **options)
    return {name: (g["algorithm"], g["name"]) for g in groups for name, _ in g["params"]}


def test_parameters_of_adapters() -> None:
    assert found(Classifier()) == EXPECTED
    inside = found(PeftModel(Classifier()))
    assert inside == {f"base_model.model.{name}": value for name, value in EXPECTED.items()}


@pytest.mark.parametrize("make", [Dion, Muon, Dion3])
def test_both_factors_of_lora_move_alike(make: type[Dion | Muon | Dion3]) -> None:
    model = nn.Sequential(LoraLinear(nn.Linear(16 * D, D)), nn.ReLU())
    optimizer = make.for_model(model, lr=0.5, weight_decay=0.0)
    rows = explain(optimizer).rows
    assert {row.lr_factor for row in rows} == {1.0}
    assert all("LoRA" in row.reason for row in rows)
    if make is Dion:
        assert {row.update_rank for row in rows} == {RANK}
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        if param.requires_grad:
            param.grad = torch.randn_like(param)
    optimizer.step()
    for name, param in model.named_parameters():
        if param.requires_grad:  # lr, up to how orthonormal the update is
            assert 0.2 < torch.linalg.matrix_norm(param - before[name], 2) < 2.0
        else:
            assert torch.equal(param, before[name])


def test_overrides_change_the_choice_for_lora() -> None:
    model = Classifier()
    overrides = {
        "q_proj.lora_B.*": {"adjust_lr_fn": "original", "rank_fraction": 0.5},
        "*.lora_A.*": {"algorithm": "adamw"},
    }
    groups = {name: g for g in param_groups(model, overrides=overrides) for name, _ in g["params"]}
    chosen = groups["q_proj.lora_B.default.weight"]
    assert (chosen["adjust_lr_fn"], chosen["rank_fraction"]) == ("original", 0.5)
    scalar = groups["q_proj.lora_A.default.weight"]
    assert scalar["algorithm"] == "adamw"
    assert not {"adjust_lr_fn", "rank_fraction"} & scalar.keys()


class LoraParameters(nn.Linear):
    """A layer of loralib, with factors as parameters."""

    def __init__(self) -> None:
        super().__init__(D, D)
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(RANK, D))
        self.lora_B = nn.Parameter(torch.randn(D, RANK))


class TorchtuneLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, D), requires_grad=False)
        self.lora_a, self.lora_b = nn.Linear(D, RANK, bias=False), nn.Linear(RANK, D, bias=False)


def test_factors_of_other_packages() -> None:
    rules = found(nn.ModuleDict({"a": LoraParameters(), "b": TorchtuneLinear()}))
    names = ("a.lora_A", "a.lora_B", "b.lora_a.weight", "b.lora_b.weight")
    assert {rules[name] for name in names} == {("dion", "LoRA factors")}


class Attention(nn.Module):
    """An attention module whose projection of queries is trained as a whole, on a copy."""

    num_heads, head_dim = 4, D // 4

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = ModulesToSaveWrapper(nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False))
        self.k_proj, self.v_proj = nn.Linear(D, D, bias=False), nn.Linear(D, 2 * D, bias=False)


def test_a_trained_copy_is_read_as_its_layer() -> None:
    model = nn.ModuleDict({"attention": Attention(), "mlp": nn.Linear(D, D)})
    groups = {name: group for group in param_groups(model, per_head=True) for name, _ in group["params"]}
    of_copy, of_layer = (groups[f"attention.{name}.weight"] for name in ("q_proj.modules_to_save.default", "k_proj"))
    assert of_copy["view"] == of_layer["view"]
    assert of_copy["view"].blocks == Attention.num_heads
    assert "view" not in groups["mlp.weight"]
    assert not any("original_module" in name for name in groups)
