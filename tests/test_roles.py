"""Which parameter gets which rule: names, wrappers, parametrizations, bare parameters, and stages of a pipeline."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from orthon import Dion, Muon, explain, param_groups

D = 8
MATRIX, SCALAR = "dion", "adamw"


def found(model: nn.Module, **options: Any) -> dict[str, tuple[str, str]]:
    """Return algorithm and name of the group of each parameter; every one should be there once."""
    groups = param_groups(model, **options)
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    placed = [param for group in groups for _, param in group["params"]]
    assert {id(p) for p in placed} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len({id(p) for p in placed}) == len(placed)
    return {name: (g["algorithm"], g["name"]) for g in groups for name, _ in g["params"]}


def group_of(model: nn.Module, name: str, **options: Any) -> dict[str, Any]:
    (group,) = (g for g in param_groups(model, weight_decay=0.5, **options) if name in dict(g["params"]))
    return group


class Net(nn.Module):
    """A classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, D)
        self.inner = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, 5)


class Around(nn.Module):
    """A model as the attribute of another, with a loss or metrics beside it."""

    def __init__(self, net: nn.Module, attribute: str = "model", **others: nn.Module) -> None:
        super().__init__()
        self.add_module(attribute, net)
        for name, other in others.items():
            self.add_module(name, other)


class LightningModule(Around):
    """What Lightning calls its models."""


class OwnParameter(Around):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.log_sigma = nn.Parameter(torch.zeros(()))


# --- names ---


class TwoOfAName(nn.Module):
    """A backbone that is called as a wrapper calls it, and a layer of the same name beside it."""

    def __init__(self, attribute: str, *, twins: bool = True) -> None:
        super().__init__()
        backbone = nn.Module()
        backbone.layer, backbone.only = nn.Linear(D, D), nn.Linear(D, D)
        self.add_module(attribute, backbone)
        if twins:
            self.layer = nn.Linear(D, D)


WORDS = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]


@pytest.mark.parametrize("word", WORDS)
def test_no_two_parameters_become_one(word: str) -> None:
    model = TwoOfAName(word)
    names = {f"{path}.{leaf}" for path in (f"{word}.layer", f"{word}.only", "layer") for leaf in ("weight", "bias")}
    assert found(model).keys() == names
    optimizer = Dion.for_model(model)
    assert {row.parameter for row in explain(optimizer).rows} == names
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer.step()
    assert not any(torch.equal(param, before[name]) for name, param in model.named_parameters())


def test_a_child_called_module_keeps_its_name() -> None:
    assert {"module.layer.weight", "module.only.weight"} <= found(TwoOfAName("module", twins=False)).keys()
    inside = Around(TwoOfAName("module"), "net")
    assert {"net.module.layer.weight", "net.layer.weight"} <= found(inside).keys()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda net: torch.compile(net, backend="eager"),
    "data parallel": nn.DataParallel,
    "checkpoint": checkpoint_wrapper,
    "average": AveragedModel,
    "compiled checkpoint": lambda net: torch.compile(checkpoint_wrapper(net), backend="eager"),
}
AROUND: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "attribute": (Around, "model."),
    "attribute with a loss": (lambda net: Around(net, loss=nn.CrossEntropyLoss()), "model."),
    "attribute with its own parameter": (OwnParameter, "model."),
    "two attributes": (lambda net: Around(Around(net, "net")), "model.net."),
    "lightning, with another model": (lambda net: LightningModule(net, teacher=Net()), "model."),
    "lightning around a wrapper": (lambda net: LightningModule(nn.DataParallel(net)), "model."),
    "frozen beside it": (lambda net: LightningModule(net, old=Net().requires_grad_(False)), "model."),
}


def with_layers_wrapped(net: nn.Module) -> nn.Module:
    for name, child in list(net.named_children()):
        setattr(net, name, checkpoint_wrapper(child))
    return net


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_change_nothing(name: str) -> None:
    net = Net()
    expected = found(net)
    assert expected["head.weight"] == (SCALAR, "output head")
    assert found(WRAPPERS[name](net)) == expected
    assert found(with_layers_wrapped(Net())) == expected
    around = found(Around(WRAPPERS[name](net)))
    assert around == {f"model.{key}": value for key, value in expected.items()}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("make", [Net, lambda: nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 5))])
def test_roles_hold_in_a_model_around_the_model(name: str, make: Callable[[], nn.Module]) -> None:
    wrap, prefix = AROUND[name]
    net = make()
    expected = {f"{prefix}{key}": value[0] for key, value in found(net).items()}
    inside = {key: value[0] for key, value in found(wrap(net)).items()}
    assert {key: inside[key] for key in expected} == expected
    assert SCALAR in {rule for key, rule in expected.items() if key.endswith("weight")}


def test_layers_inside_a_model_are_no_heads() -> None:
    blocks = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(D, D), "out": nn.Linear(D, D)})})
    assert {value[1] for key, value in found(Around(blocks)).items() if "weight" in key} == {"hidden matrices"}
    two = found(Around(Net(), encoder=nn.ModuleDict({"fc": nn.Linear(D, D)})))
    assert two["encoder.fc.weight"] == (MATRIX, "hidden matrices")


# --- reparametrizations ---


class Layers(nn.Module):
    def __init__(self, around: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.embed = around(nn.Embedding(11, D))
        self.conv = around(nn.Conv2d(6, D, 3, padding=1))
        self.stem = around(nn.Conv2d(3, D, 4, stride=4))
        self.inner = around(nn.Linear(D, D))
        self.head = around(nn.Linear(D, 5))


OF_WEIGHT = [
    "weight",
    "weight_v",
    "weight_orig",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
]
MAGNITUDES = ["weight_g", "parametrizations.weight.original0"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    "around",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        weight_norm,
        spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    ],
    ids=["weight norm", "spectral norm", "old weight norm", "old spectral norm", "pruned"],
)
def test_parametrizations_keep_roles(around: Callable[[nn.Module], nn.Module]) -> None:
    plain = found(Layers())
    model = Layers(around)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    new = found(model)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())  # nothing has been computed
    for layer in ("embed", "conv", "stem", "inner", "head"):
        (weight,) = (new[f"{layer}.{leaf}"] for leaf in OF_WEIGHT if f"{layer}.{leaf}" in new)
        assert weight == plain[f"{layer}.weight"]
        for leaf in MAGNITUDES:
            if f"{layer}.{leaf}" in new:
                assert new[f"{layer}.{leaf}"] == (SCALAR, "embeddings" if layer == "embed" else "norms and biases")
                assert group_of(model, f"{layer}.{leaf}")["weight_decay"] == 0.0
    assert {value[1] for value in new.values()} == {value[1] for value in plain.values()}


def test_parametrized_attention_keeps_its_views() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(D, 2)})
    nn.utils.parametrizations.orthogonal(model["attn"].out_proj)
    nn.utils.parametrizations.spectral_norm(model["attn"], "in_proj_weight")
    group = group_of(model, "attn.parametrizations.in_proj_weight.original", per_head=True)
    assert group["view"].blocks == 6
    output = group_of(model, "attn.out_proj.parametrizations.weight.original", per_head=True)
    assert (output["view"].blocks, output["view"].side) == (2, "columns")


# --- bare parameters ---

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


# --- stages of a pipeline ---


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


# --- names of groups ---


def test_groups_have_plain_unique_names_and_matrices_come_first() -> None:
    model = nn.ModuleDict({"net": Layers(), "attn": nn.MultiheadAttention(D, 2), "more": Net()})
    for options in (
        {},
        {"per_head": True},
        {"overrides": {"*.inner.*": {"lr": 0.1}, "attn.*": {"rank_fraction": 0.5}}},
    ):
        groups = param_groups(model, lr=0.25, **options)
        names = [group["name"] for group in groups]
        assert len(set(names)) == len(names)
        assert all(name.replace(" ", "").isalnum() for name in names)  # MLflow takes little else
        rules = [group["algorithm"] for group in groups]
        assert rules == sorted(rules, key=lambda rule: rule != MATRIX)
        assert groups[0]["lr"] == 0.25


def test_it_counts_what_it_has_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    monkeypatch.setattr("orthon.model.deciding.places", lambda spots: dict(list(_places(spots).items())[1:]))
    with pytest.raises(RuntimeError, match=r"of 7 parameters of Net .* 6 are in groups; it differs for embed.weight"):
        param_groups(model)


def _places(spots: Any) -> Any:
    from orthon.model.places import places

    return places(spots)
