"""Which parameter gets which rule: names, wrappers, parametrizations, bare parameters, and stages of a pipeline."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from orthon import Dion, explain, param_groups

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
