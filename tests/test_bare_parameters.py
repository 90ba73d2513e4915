"""Parameters that a module has for itself, layers that look like linear ones, and marks against weight decay."""

import pytest
import torch
from torch import nn

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
