"""Which algorithm updates which parameter of a model, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orthon.algorithms import RULES
from orthon.names import plain_name

# The usual learning rates of what is no hidden matrix.
SCALAR_LR = {"adamw": 3e-3, "lion": 3e-4}

# Names of a model's last layer. The second kind also names layers inside, so that it counts at the top alone.
_HEADS = {"lm_head", "output_layer", "unembed", "unembedding", "embed_out", "classification_head"}
_HEADS_AT_TOP = {"head", "heads", "fc", "output", "classifier", "score", "out", "decoder"}

_EMBEDDING_WORDS = ("embed", "wte", "wpe", "token", "pos_", "position")


@dataclass(frozen=True)
class Role:
    """What a parameter is in its model."""

    name: str  # of the param group
    reason: str
    is_hidden_matrix: bool = False
    decays: bool = False


HIDDEN = Role("hidden matrices", "matrix inside the model", is_hidden_matrix=True, decays=True)
EMBEDDING = Role("embeddings", "embedding: a gradient touches few rows")
TIED = Role("embeddings", "tied: embedding and output head in one")
HEAD = Role("output head", "output head: each row is one class", decays=True)
ROUTER = Role("routers", "router: each row is one expert", decays=True)
NORM = Role("norms and biases", "norm: not a matrix")
BIAS = Role("norms and biases", "bias: not a matrix")
VECTOR = Role("norms and biases", "vector or scalar: not a matrix")
ONE_LINE = Role("one-line matrices", "one row or one column: a vector", decays=True)
HIGHER = Role("other weights", "more than two dims: not one plain matrix", decays=True)
TRANSPOSED = Role("other weights", "stored as (in, out): the shape factor would be upside down", decays=True)
EMPTY = Role("other weights", "empty")


def param_groups(
    model: nn.Module,
    algorithm: str = "dion",
    scalar_algorithm: str = "adamw",
    *,
    lr: float | Tensor | None = None,
    scalar_lr: float | Tensor | None = None,
    weight_decay: float | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return param groups for all parameters of a model that require gradients.

    Hidden matrices go to `algorithm`; embeddings, output heads, routers, norms, biases, and weights that are
    not one plain matrix go to `scalar_algorithm`, without weight decay for embeddings, norms and biases.
    Module types decide where they can, and names where they cannot; `orthon.explain` shows the result.

    Args:
        model: any module.
        algorithm: for hidden matrices.
        scalar_algorithm: for the rest.
        lr: learning rate of the hidden matrices; None for the optimizer's.
        scalar_lr: learning rate of the rest; None for the usual one of `scalar_algorithm` (AdamW 0.003,
            Lion 0.0003).
        weight_decay: for hidden matrices, heads, routers and other weights; None for the optimizer's.
        overrides: options by name pattern, such as {"*.mlp.*": {"rank_fraction": 0.5}}; `*` matches any text.
            A parameter that several patterns match takes the options of all, the later ones first.

    Returns:
        A list of dictionaries for the constructor of an optimizer: "params" with (name, tensor) pairs,
        "name", "reason" and "algorithm" beside the options.

    Raises:
        ValueError: for an unknown algorithm, a pattern that matches nothing, or a model without parameters.
    """
    for argument, name in (("algorithm", algorithm), ("scalar_algorithm", scalar_algorithm)):
        if name not in RULES:
            raise ValueError(f"param_groups: {argument} should be one of {sorted(RULES)}, but is {name!r}")
    model = _unwrapped(model)
    roles = _roles(model)
    if not roles:
        raise ValueError(f"param_groups: {type(model).__name__} has no parameters that require gradients")
    overrides = overrides or {}
    for pattern in overrides:
        if not any(fnmatchcase(name, pattern) for name in roles):
            raise ValueError(
                f"param_groups: the pattern {pattern!r} in overrides matches no parameter; there are "
                f"{', '.join(list(roles)[:3])}, ..."
            )

    parameters = {plain_name(name): p for name, p in model.named_parameters()}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, role in roles.items():
        patterns = tuple(pattern for pattern in overrides if fnmatchcase(name, pattern))
        key = (role, patterns)
        if key not in groups:
            own_lr = (
                lr if role.is_hidden_matrix else SCALAR_LR.get(scalar_algorithm) if scalar_lr is None else scalar_lr
            )
            options: dict[str, Any] = {
                "algorithm": algorithm if role.is_hidden_matrix else scalar_algorithm,
                "lr": own_lr,
                "weight_decay": weight_decay if role.decays else 0.0,
            }
            groups[key] = {
                "params": [],
                "name": ", ".join([role.name, *patterns]),
                "reason": role.reason,
                **{option: value for option, value in options.items() if value is not None},
            }
            for pattern in patterns:
                groups[key].update(overrides[pattern])
        groups[key]["params"].append((name, parameters[name]))
    return list(groups.values())


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself, without DistributedDataParallel and torch.compile around it."""
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def _roles(model: nn.Module) -> dict[str, Role]:
    """Return the role of each parameter that requires gradients, by name, in the model's order."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(param), []).append((plain_name(f"{module_name}.{name}".lstrip(".")), module))
    vocabularies = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    heads = _declared_heads(model)
    return {
        plain_name(name): _role(plain_name(name), param, owners[id(param)], vocabularies, heads)
        for name, param in model.named_parameters()
        if param.requires_grad
    }


def _declared_heads(model: nn.Module) -> set[nn.Module]:
    """Return the output layers that the model itself knows of."""
    heads: set[nn.Module] = set()
    for module in model.modules():
        get_head = getattr(module, "get_output_embeddings", None)
        if callable(get_head) and isinstance(head := get_head(), nn.Module):
            heads.add(head)
    if isinstance(model, nn.Sequential) and len(model) > 1 and isinstance(model[-1], nn.Linear):
        heads.add(model[-1])
    return heads


def _role(
    name: str,
    param: Tensor,
    owners: list[tuple[str, nn.Module]],
    vocabularies: set[int],
    heads: set[nn.Module],
) -> Role:
    modules = [module for _, module in owners]
    *path, leaf = name.split(".")
    layer = path[-1] if path else ""
    if param.numel() == 0:
        return EMPTY
    if any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in modules):
        is_tied = any(not isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in modules)
        return TIED if is_tied else EMBEDDING
    if any("norm" in type(module).__name__.lower() for module in modules):
        return NORM
    if leaf == "bias" or leaf.endswith("_bias"):
        return BIAS
    if param.ndim < 2:
        return VECTOR
    if not isinstance(modules[0], nn.Linear) and any(word in leaf.lower() for word in _EMBEDDING_WORDS):
        return EMBEDDING
    if param.ndim > 2:
        return HIGHER
    if min(param.shape) == 1:
        return ONE_LINE
    is_head = (
        any(module in heads for module in modules)
        or layer in _HEADS
        or (len(path) == 1 and layer in _HEADS_AT_TOP)
        or (isinstance(modules[0], nn.Linear) and param.shape[0] in vocabularies)
    )
    if is_head:
        return HEAD
    if layer == "router" or (layer == "gate" and param.shape[0] < param.shape[1]):
        return ROUTER
    if type(modules[0]).__name__ == "Conv1D":  # of transformers' GPT-2
        return TRANSPOSED
    return HIDDEN
