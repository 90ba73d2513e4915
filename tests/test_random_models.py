"""Random trees of modules and wrappers: every trainable parameter is in one group, and roles hold under wrapping."""

import warnings
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

from orthon import param_groups
from orthon.step.names import plain_names

# Names that wrappers give, names that tell a role, and plain ones.
WORDS = ["module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "parametrizations"]
CHILDREN = [*WORDS, "head", "fc", "lm_head", "gate", "layer", "base_layer", "modules_to_save", "lora_A", "original"]
LEAVES = ["weight", "bias", "A_log", "pos_embed", "latents", "weight_g", "weight_orig", "original0", "lora_B"]
SHAPES = [(), (3,), (4, 3), (1, 4), (2, 4, 3), (1, 4, 3), (0, 3)]


class Holder(nn.Module):
    """A module with parameters of its own, and children."""


class LightningModule(Holder):
    pass


class ModulesToSaveWrapper(Holder):
    pass


class BaseTunerLayer(Holder):
    pass


class DataParallel(Holder):
    """Has the name of a wrapper, whatever is in it."""


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(3, 4),
    lambda: nn.Embedding(5, 3),
    lambda: nn.LayerNorm(3),
    lambda: nn.Conv1d(4, 6, 3),
    lambda: nn.MultiheadAttention(4, 2),
    lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
]


def compiled(module: nn.Module) -> nn.Module:
    """Compile a module that is not compiled already, which torch does not take twice."""
    return module if hasattr(module, "get_compiler_config") else torch.compile(module, backend="eager")


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    checkpoint_wrapper,
    compiled,
    nn.DataParallel,
]
layers = st.sampled_from(LAYERS).map(lambda make: make())


@st.composite
def holders(draw: st.DrawFn, children: st.SearchStrategy[nn.Module]) -> nn.Module:
    module = draw(
        st.sampled_from([Holder, Holder, LightningModule, ModulesToSaveWrapper, BaseTunerLayer, DataParallel])
    )()
    for leaf in draw(st.lists(st.sampled_from(LEAVES), unique=True, max_size=3)):
        trained = draw(st.booleans())
        module.register_parameter(leaf, nn.Parameter(torch.ones(draw(st.sampled_from(SHAPES))), requires_grad=trained))
    for child in draw(st.lists(st.sampled_from(CHILDREN), unique=True, max_size=4)):
        module.add_module(child, draw(children))
    return module


def wrapped(children: st.SearchStrategy[nn.Module]) -> st.SearchStrategy[nn.Module]:
    return st.builds(lambda wrap, module: wrap(module), st.sampled_from(WRAPPERS), children)


models = st.recursive(layers, lambda children: st.one_of(holders(children), wrapped(children)), max_leaves=8)


def groups_of(model: nn.Module) -> list[dict[str, object]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where everything is frozen
        return param_groups(model)


def roles(model: nn.Module) -> dict[int, tuple[object, ...]]:
    """Return by parameter what its group says."""
    kept = ("algorithm", "lr", "weight_decay", "view", "reason")
    return {id(p): tuple(g.get(key) for key in kept) for g in groups_of(model) for _, p in g["params"]}


@settings(max_examples=150, deadline=None)
@given(models)
def test_every_trainable_parameter_is_in_one_group(model: nn.Module) -> None:
    if next(model.parameters(), None) is None:
        return
    groups = groups_of(model)
    pairs = [pair for group in groups for pair in group["params"]]
    assert sorted(id(p) for _, p in pairs) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names)
    full = {id(p): name for name, p in nn.Module.named_parameters(model)}  # some wrappers tell shorter ones
    for name, param in pairs:  # a name is the full one, without some parts
        parts = iter(full[id(param)].split("."))
        assert all(part in parts for part in name.split(".")), f"{name} of {full[id(param)]}"
    labels = [group["name"] for group in groups]
    assert len(set(labels)) == len(labels)


@settings(max_examples=100, deadline=None)
@given(models, st.lists(st.sampled_from(WRAPPERS), min_size=1, max_size=3))
def test_roles_do_not_change_under_wrapping(model: nn.Module, around: list[Callable[[nn.Module], nn.Module]]) -> None:
    if next(model.parameters(), None) is None:
        return
    before = roles(model)
    outer = model
    for wrap in around:
        outer = wrap(outer)
    assert roles(outer) == before
    lightning = LightningModule()
    lightning.add_module("net", outer)
    if isinstance(model, Holder):  # a layer alone is no model
        assert roles(lightning) == before
    for child, layer in list(model.named_children()):
        if type(model) is Holder and child not in WORDS:
            setattr(model, child, around[0](layer))
    assert roles(model) == before


names = st.lists(st.sampled_from([*WORDS, "a", "b"]), min_size=1, max_size=4).map(".".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(names, unique=True))
def test_names_stay_unique(given: list[str]) -> None:
    plain = plain_names(given)
    assert len(set(plain)) == len(given)
    if plain != given:
        assert not {"_orig_mod", "_fsdp_wrapped_module"} & {part for name in plain for part in name.split(".")[:-1]}
    if not all(name.startswith("module.") for name in given):
        assert plain_names([f"module.{name}" for name in given]) in (plain, [f"module.{name}" for name in given])
