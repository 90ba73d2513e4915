"""Parameters that a module has for itself, layers that look like linear ones, and marks against weight decay."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from orthon import Dion, MatrixView, param_groups
from tests.test_roles import MATRIX, SCALAR, Around, D, Net, found, group_of

BARE = {
    "A_log": (D, 4),
    "time_decay": (2, D),
    "latents": (6, D),
    "latents_3d": (2, 6, D),
    "query_tokens": (1, 6, D),
    "prompts": (4, 6, D),
    "pos_embed": (1, 9, D),
    "position_table": (9, D),
    "relative_position_bias_table": (9, D),
    "scale_shift_table": (6, D),
    "class_queries": (3, 4, D),
    "one_row": (1, D),
    "mixing": (D, D),
}


@pytest.mark.parametrize("leaf", BARE)
def test_bare_parameters_are_no_hidden_matrices(leaf: str) -> None:
    model = nn.Module()
    model.inner, model.deep = nn.Linear(D, D), nn.Module()
    for module in (model, model.deep):
        module.register_parameter(leaf, nn.Parameter(torch.ones(BARE[leaf])))
    for name in (leaf, f"deep.{leaf}"):
        group = group_of(model, name)
        assert (group["algorithm"], group["weight_decay"]) == (SCALAR, 0.0)
        assert group["reason"]
    if len(BARE[leaf]) == 2 and group["name"] == "other parameters":
        assert "override its algorithm" in group["reason"]
        chosen = group_of(model, f"deep.{leaf}", overrides={f"deep.{leaf}": {"algorithm": "dion"}}, lr=0.25)
        assert (chosen["algorithm"], chosen["weight_decay"], chosen["lr"]) == (MATRIX, 0.5, 0.25)


def test_bare_parameters_in_lists_and_dicts() -> None:
    model = nn.ModuleDict(
        {
            "list": nn.ParameterList([nn.Parameter(torch.ones(D, D))]),
            "dict": nn.ParameterDict({"weight": nn.Parameter(torch.ones(D, D))}),
            "inner": nn.Linear(D, D),
        }
    )
    rules = found(model)
    assert rules["list.0"][0] == rules["dict.weight"][0] == SCALAR
    assert rules["inner.weight"][0] == MATRIX


class ColumnParallel(nn.Module):
    """A linear layer as Megatron has it, which is no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size = D, 2 * D
        self.weight = nn.Parameter(torch.ones(2 * D, D))


class BitLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2 * D, D))
        self.table = nn.Parameter(torch.ones(2 * D, D))


def test_layers_that_are_known_to_multiply() -> None:
    model = nn.ModuleDict({"a": ColumnParallel(), "b": BitLinear(), "c": nn.LSTM(D, D), "d": nn.GRUCell(D, D)})
    rules = found(model)
    for name in ("a.weight", "b.weight", "c.weight_ih_l0", "c.weight_hh_l0", "d.weight_ih"):
        assert rules[name] == (MATRIX, "hidden matrices")
    assert rules["b.table"][0] == rules["c.bias_ih_l0"][0] == SCALAR


def test_marks_against_weight_decay_are_honoured() -> None:
    class Model(Net):
        def no_weight_decay(self) -> set[str]:  # as models of timm have it
            return {"inner.weight"}

    model = Model()
    model.head.weight._no_weight_decay = True  # as Mamba has it
    for name, rule in (("inner.weight", MATRIX), ("head.weight", SCALAR)):
        group = group_of(model, name)
        assert (group["algorithm"], group["weight_decay"]) == (rule, 0.0)
        assert "no weight decay" in group["reason"]
    assert group_of(Around(model), "model.inner.weight")["weight_decay"] == 0.0
    assert group_of(Net(), "inner.weight")["weight_decay"] == 0.5
    assert group_of(model, "inner.weight", overrides={"inner.*": {"weight_decay": 0.25}})["weight_decay"] == 0.25


class Mixing(nn.Module):
    """A layer with weights of its own, which nobody knows to be matrices, beside one that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)
        self.mixing, self.other = (nn.Parameter(torch.ones(D, D)) for _ in range(2))
        self.stacked = nn.Parameter(torch.ones(3, D, D))
        self.prompts = nn.Parameter(torch.ones(4, 6, D))
        self.embed = nn.Embedding(50, D)


VIEW = {"algorithm": MATRIX, "view": MatrixView()}


@pytest.mark.parametrize(
    ("name", "override", "group", "reason"),
    [
        ("mixing", {"algorithm": MATRIX}, "hidden matrices 2", "matrix by override; override 'mixing'"),
        ("mixing", {"algorithm": "muon"}, "hidden matrices 2", "matrix by override; override 'mixing'"),
        ("mixing", {"algorithm": "lion"}, "other parameters 2", "belongs to no layer .*; override 'mixing'"),
        ("mixing", {"weight_decay": 0.5}, "other parameters 2", "belongs to no layer .*; override 'mixing'"),
        (
            "mixing",
            {"algorithm": MATRIX, "view": {"blocks": 2}},
            "hidden matrices 2",
            "matrix by override; .*2.*; override",
        ),
        ("stacked", VIEW, "hidden matrices 2", "matrix by override; .*; override 'stacked'"),
        ("prompts", VIEW, "hidden matrices 2", "matrix by override; .*; override 'prompts'"),
        ("stacked", {"algorithm": "lion"}, "other weights", "more than two dims.*; override 'stacked'"),
        ("inner.weight", {"algorithm": "lion"}, "hidden matrices", "matrix inside the model; override 'inner.weight'"),
        ("inner.weight", {"algorithm": "muon"}, "hidden matrices", "matrix inside the model; override 'inner.weight'"),
        ("embed.weight", {"algorithm": MATRIX}, "embeddings", "embedding: .*; override 'embed.weight'"),
    ],
)
def test_an_override_that_makes_a_parameter_a_matrix(
    name: str, override: dict[str, Any], group: str, reason: str
) -> None:
    """It then is a hidden matrix, and the reason is the override. What is known keeps its name."""
    groups = param_groups(Mixing(), MATRIX, lr=0.25, weight_decay=0.5, overrides={name: override})
    (its,) = (each for each in groups if name in dict(each["params"]))
    assert its["name"] == group
    assert re.fullmatch(reason + ".*", its["reason"]), its["reason"]
    assert its["algorithm"] == override.get("algorithm", SCALAR)
    if group.startswith("hidden") and its["algorithm"] != "lion":
        assert (its["lr"], its["weight_decay"]) == (0.25, 0.5)
    names = [each["name"] for each in groups]
    assert len(set(names)) == len(names)
    matrices = [each["algorithm"] == MATRIX for each in groups]
    assert matrices == sorted(matrices, reverse=True), "those of the algorithm come first"
    Dion(groups)


def test_a_parameter_made_a_matrix_is_as_a_known_one_with_the_same_override() -> None:
    """One pattern for both: the groups differ in their reason alone."""
    groups = param_groups(Mixing(), MATRIX, overrides={"*": {"algorithm": "muon", "view": None, "weight_decay": 0.5}})
    hidden = [group for group in groups if group["name"].startswith("hidden matrices")]
    assert [[name for name, _ in group.pop("params")] for group in hidden] == [
        ["mixing", "other", "stacked", "prompts"],
        ["inner.weight"],
    ]
    for group in hidden:
        del group["name"], group["reason"]
    assert hidden[0] == hidden[1]


@pytest.mark.parametrize("name", ["mixing", "stacked"])
def test_a_parameter_made_a_matrix_has_no_decay_if_the_model_says_so(name: str) -> None:
    model = Mixing()
    before = [group["name"] for group in param_groups(Mixing(), MATRIX)]
    getattr(model, name)._no_weight_decay = True
    if name == "mixing":  # has none in any case
        assert [group["name"] for group in param_groups(model, MATRIX)] == before
    chosen = group_of(model, name, overrides={name: VIEW})
    assert chosen["name"] == "hidden matrices without decay"
    assert chosen["weight_decay"] == 0.0
    assert "matrix by override; the model says: no weight decay" in chosen["reason"]
