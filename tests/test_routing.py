"""Which parameter goes where, on models as people write them."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from orthon import Dion, explain, param_groups
from orthon.sharding.matrix_view import MatrixView


def routes(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Return algorithm and group of each parameter."""
    return {
        name: (group["algorithm"], group["name"].rstrip(" 0123456789"))
        for group in param_groups(model)
        for name, _ in group["params"]
    }


def llama(vocab_size: int = 96, **kwargs: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        **kwargs,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("vocab_size", [96, 64, 32])
def test_llama(vocab_size: int) -> None:
    """Also with as many tokens as the layers have numbers."""
    found = routes(llama(vocab_size))
    layer = "model.layers.1."
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert found[f"{layer}self_attn.{name}.weight"] == ("dion", "hidden matrices")
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert found[f"{layer}mlp.{name}.weight"] == ("dion", "hidden matrices")
    assert found[f"{layer}input_layernorm.weight"] == ("adamw", "norms and biases")
    assert found["model.embed_tokens.weight"] == ("adamw", "embeddings")
    assert found["lm_head.weight"] == ("adamw", "output head")
    assert len(found) == len(list(llama().parameters()))


def test_tied_embeddings_appear_once() -> None:
    groups = param_groups(llama(tie_word_embeddings=True))
    names = [name for group in groups for name, _ in group["params"]]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert any(group["reason"].startswith("tied") for group in groups)


class Odd(nn.Module):
    """Names that tell, names that mislead, and parameters without a module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(9, 8))
        self.mixing = nn.Parameter(torch.zeros(8, 8))
        self.scale = nn.Parameter(torch.ones(()))
        self.conv = nn.Conv2d(3, 8, 3)
        self.block = nn.ModuleDict({"gate": nn.Linear(8, 32), "router": nn.Linear(8, 4, bias=False)})
        self.attn = nn.MultiheadAttention(8, 2)
        self.norm = nn.BatchNorm1d(8)
        self.one = nn.Linear(8, 1)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.fc = nn.Linear(8, 10)


def test_names_and_types() -> None:
    found = {name: group for name, (_, group) in routes(Odd()).items()}
    assert found == {
        "pos_embed": "embeddings",
        "mixing": "other parameters",
        "scale": "norms and biases",
        "conv.weight": "convolutions",
        "conv.bias": "norms and biases",
        "block.gate.weight": "hidden matrices",
        "block.gate.bias": "norms and biases",
        "block.router.weight": "routers",
        "attn.in_proj_weight": "hidden matrices",
        "attn.in_proj_bias": "norms and biases",
        "attn.out_proj.weight": "hidden matrices",
        "attn.out_proj.bias": "norms and biases",
        "norm.weight": "norms and biases",
        "norm.bias": "norms and biases",
        "one.weight": "one-line matrices",
        "one.bias": "norms and biases",
        "fc.weight": "output head",
        "fc.bias": "norms and biases",
    }


def test_wrapped_models_keep_plain_names() -> None:
    wrapped = torch.compile(llama(), backend="eager")
    assert routes(wrapped) == routes(llama())


def test_learning_rates_and_decay() -> None:
    groups = {g["name"]: g for g in param_groups(llama(), lr=0.5, scalar_lr=0.25, weight_decay=0.125)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "embeddings": (0.25, 0.0),
        "hidden matrices": (0.5, 0.125),
        "norms and biases": (0.25, 0.0),
        "output head": (0.25, 0.125),
    }
    optimizer = Dion.for_model(llama(), lr=0.5, weight_decay=0.125, scalar_algorithm="lion")
    by_name = {g["name"]: g for g in optimizer.param_groups}
    assert (by_name["hidden matrices"]["lr"], by_name["output head"]["lr"]) == (0.5, 3e-4)
    assert by_name["output head"]["algorithm"] == "lion"
    assert by_name["output head"]["weight_decay"] == 0.125


def test_overrides() -> None:
    overrides = {
        "*.mlp.*": {"rank_fraction": 0.5},
        "*.1.mlp.up_proj.weight": {"lr": 0.7},
        "lm_head.*": {"algorithm": "lion", "betas": (0.9, 0.99)},
    }
    optimizer = Dion.for_model(llama(), overrides=overrides, rank_fraction=0.25)
    groups = {name: g for g in optimizer.param_groups for name in g["param_names"]}
    assert groups["model.layers.0.mlp.up_proj.weight"]["rank_fraction"] == 0.5
    assert groups["model.layers.1.mlp.up_proj.weight"]["rank_fraction"] == 0.5
    assert groups["model.layers.1.mlp.up_proj.weight"]["lr"] == 0.7
    assert groups["model.layers.0.self_attn.q_proj.weight"]["rank_fraction"] == 0.25
    assert groups["lm_head.weight"]["algorithm"] == "lion"
    assert groups["lm_head.weight"]["name"] == "output head"
    assert groups["lm_head.weight"]["reason"] == "output head: each row is one class; override 'lm_head.*'"
    assert groups["model.layers.1.mlp.up_proj.weight"]["reason"].endswith(
        "; override '*.mlp.*'; override '*.1.mlp.up_proj.weight'"
    )


@pytest.mark.parametrize("algorithm", ["dion", "adamw"])
def test_names_are_unique_and_plain_and_hidden_matrices_come_first(algorithm: str) -> None:
    overrides = {"*.q_proj.*": {"lr": 0.7}, "*.up_proj.*": {"algorithm": "lion"}, "lm_head.*": {"algorithm": "dion"}}
    for model, given in ((llama(), overrides), (llama(), {}), (Odd(), {"conv.*": {"weight_decay": 0.5}})):
        groups = param_groups(model, algorithm, lr=0.5, overrides=given)
        names = [group["name"] for group in groups]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z -]+( [0-9]+)?", name) for name in names)
        assert (names[0], groups[0]["lr"], groups[0]["algorithm"]) == ("hidden matrices", 0.5, algorithm)
        chosen = [group["algorithm"] == algorithm for group in groups]
        assert chosen == sorted(chosen, reverse=True)
    assert any(name.endswith(" 2") for name in names)


def test_overrides_of_algorithm_and_view() -> None:
    model = nn.ModuleDict(
        {"inner": nn.Linear(8, 6), "stack": nn.ParameterDict({"w": nn.Parameter(torch.ones(3, 8, 6))})}
    )
    (unknown,) = (group for group in param_groups(model) if group["name"] == "other weights")
    assert (unknown["algorithm"], unknown["params"][0][0]) == ("adamw", "stack.w")
    assert "override its algorithm and view" in unknown["reason"]
    assert "view" not in unknown

    overrides: dict[str, Any] = {
        "stack.*": {"algorithm": "dion", "view": {"transposed": True, "blocks": [4, 2]}},
        "inner.weight": {"algorithm": "lion"},
    }
    groups = {name: g for g in param_groups(model, lr=0.5, overrides=overrides) for name, _ in g["params"]}
    stack, inner = groups["stack.w"], groups["inner.weight"]
    assert (stack["algorithm"], stack["lr"]) == ("dion", 0.5)
    assert stack["view"] == MatrixView(transposed=True, blocks=(4, 2))
    assert stack["view"].read((3, 8, 6)).count == 6
    assert stack["name"] == "hidden matrices"
    assert stack["reason"].startswith("matrix by override")
    assert stack["reason"].endswith("; MatrixView(transposed=True, blocks=(4, 2)); override 'stack.*'")
    assert (inner["algorithm"], inner["lr"]) == ("lion", 3e-4)

    with pytest.raises(ValueError, match="MatrixView: takes blocks, kind, side, transposed, not 'block'"):
        param_groups(model, overrides={"stack.*": {"algorithm": "dion", "view": {"block": 2}}})


def test_overrides_of_a_view_that_was_found() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
    name = "attn.in_proj_weight"

    def view(**options: Any) -> dict[str, Any]:
        groups = param_groups(model, overrides={"*.in_proj_weight": options})
        (group,) = (g for g in groups if name in dict(g["params"]))
        return {key: group.get(key) for key in ("algorithm", "view", "lr")}

    assert view(lr=0.5) == {"algorithm": "dion", "view": MatrixView(blocks=3), "lr": 0.5}
    assert view(view={"blocks": 6}) == {"algorithm": "dion", "view": MatrixView(blocks=6), "lr": None}
    assert view(view=None) == {"algorithm": "dion", "view": None, "lr": None}
    assert view(algorithm="adamw") == {"algorithm": "adamw", "view": None, "lr": 3e-3}


def test_for_model_passes_per_head_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def groups(*args: Any, per_head: bool, **kwargs: Any) -> list[dict[str, Any]]:
        given["per_head"] = per_head
        return param_groups(*args, **kwargs)

    monkeypatch.setattr("orthon.optimizers.common.param_groups", groups)
    Dion.for_model(llama())
    assert not given["per_head"]
    Dion.for_model(llama(), per_head=True)
    assert given["per_head"]


def test_algorithms_without_matrices_get_no_views() -> None:
    model = nn.ModuleDict({"conv": nn.Conv1d(8, 8, 3), "attn": nn.MultiheadAttention(8, 2)})
    groups = param_groups(model, algorithm="lion", per_head=True)
    assert not any("view" in group for group in groups)
    assert {g["name"]: g["algorithm"] for g in groups}["convolutions"] == "lion"


@pytest.mark.parametrize("algorithm", ["adamw", "lion"])
def test_one_algorithm_for_everything(algorithm: str) -> None:
    groups = param_groups(llama(), algorithm=algorithm, scalar_algorithm=algorithm)
    assert {g["algorithm"] for g in groups} == {algorithm}
    assert {g["name"]: g.get("weight_decay") for g in groups}["embeddings"] == 0.0


def test_explain_tells_of_a_tail() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = Dion.for_model(model, tail=0.5, overrides={"1.weight": {"rank_fraction": 1.0}})
    text = str(explain(optimizer))
    assert re.search(r"0\.weight .* 2 \+ tail ", text)
    assert re.search(r"1\.weight .* dion +8 +1 ", text)


def test_explain_tells_what_the_optimizer_does() -> None:
    model = llama()
    optimizer = Dion.for_model(model, rank_fraction=0.5, state_dtype=torch.bfloat16)
    explanation = explain(optimizer)
    rows = {row.parameter: row for row in explanation.rows}
    down = rows["model.layers.0.mlp.down_proj.weight"]
    assert (down.shape, down.rule, down.update_rank) == ((32, 64), "dion", 16)
    assert down.lr_factor == pytest.approx(0.5**0.5)
    assert down.state_bytes == 2 * (32 * 64 + 64 * 16)
    assert down.reason == "matrix inside the model"
    norm = rows["model.norm.weight"]
    assert (down.has_tail, norm.has_tail) == (True, False)
    assert (norm.rule, norm.update_rank, norm.lr_factor, norm.state_bytes) == ("adamw", None, 1.0, 4 + 2 * 4 * 32)

    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    actual = {name: sum(v.nbytes for v in optimizer.state[p].values()) for name, p in model.named_parameters()}
    assert {name: row.state_bytes for name, row in rows.items()} == actual
    assert explain(optimizer) == explanation

    text = str(explanation)
    assert re.search(r"^model\.layers\.\{0-1\}\.mlp\.down_proj\.weight \(×2\) +32×64 +dion +16 ", text, re.MULTILINE)
    assert text.splitlines()[-4].startswith("adamw: 7 parameters, 6,304 numbers")
    assert text.splitlines()[-1].startswith("memory of a step beside weights, gradients and state: at most ")
