"""Which algorithm updates which parameter of a model, and why."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel

from orthon.algorithms import RULES
from orthon.model.module_views import known_roles
from orthon.model.roles import BIAS, EMBEDDING, EMPTY, HEAD, HIDDEN, HIGHER, NORM, ONE_LINE, ROUTER, TIED, VECTOR, Role
from orthon.sharding.matrix_view import MatrixView
from orthon.step.names import plain_name

# The usual learning rates of parameters that are no hidden matrices.
SCALAR_LR = {"adamw": 3e-3, "lion": 3e-4}

# Names of a model's last layer. The second kind counts at the top alone, as layers inside a model have such names, too.
_HEADS = {"lm_head", "output_layer", "unembed", "unembedding", "embed_out", "classification_head"}
_HEADS_AT_TOP = {"head", "heads", "fc", "output", "classifier", "score", "out", "decoder"}

_EMBEDDING_WORDS = ("embed", "wte", "wpe", "token", "pos_", "position")


def param_groups(
    model: nn.Module,
    algorithm: str = "dion",
    scalar_algorithm: str = "adamw",
    *,
    lr: float | Tensor | None = None,
    scalar_lr: float | Tensor | None = None,
    weight_decay: float | Tensor | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    per_head: bool = False,
) -> list[dict[str, Any]]:
    """Return param groups for all parameters of a model that require gradients.

    Hidden matrices go to `algorithm`. Embeddings, output heads, routers, norms and biases go to `scalar_algorithm`,
    and embeddings, norms and biases have no weight decay. The types of modules decide where they can, and names where
    they cannot. `orthon.explain` shows the result.

    Some weights are several matrices, or one matrix stored in another order. These go to `algorithm` with a "view", a
    `MatrixView`: convolutions, `nn.MultiheadAttention`, and known modules of transformers, such as GPT-2's `Conv1D`,
    experts, fused query, key and value, and fused gate and up. A weight with more than two dims in an unknown module
    goes to `scalar_algorithm`. An override with both "algorithm" and "view" changes that. {"view": None} takes a view
    away.

    Args:
        model: any module.
        algorithm: for hidden matrices.
        scalar_algorithm: for the rest.
        lr: learning rate of the hidden matrices. None is the optimizer's.
        scalar_lr: learning rate of the rest. None is the usual one of `scalar_algorithm`: 0.003 for AdamW, 0.0003 for
            Lion.
        weight_decay: of hidden matrices, heads, routers and other weights. None is the optimizer's.
        overrides: options by name pattern, such as {"*.mlp.*": {"rank_fraction": 0.5}}. `*` matches any text. A
            parameter that several patterns match takes the options of all of them; where they disagree, the last one
            counts. If an override moves a parameter between algorithms for matrices and others, the learning rate
            changes with it: from `lr` to `scalar_lr`, or back.
        per_head: whether each attention head is a matrix of its own, where the attention module tells how many heads
            there are. A head is a block of rows in the projections of query, key and value, and a block of columns in
            the projection of the output.

    Returns:
        A list of param groups for the constructor of an optimizer, those of `algorithm` first. Each has "params" with
        (name, tensor) pairs, "name", which no other has, "reason", "algorithm", and options. Groups of plain matrices
        have no "view".

    Raises:
        ValueError: for an unknown algorithm, a pattern that matches nothing, a view that is not allowed, or a
            model without parameters.
    """
    for argument, name in (("algorithm", algorithm), ("scalar_algorithm", scalar_algorithm)):
        if name not in RULES:
            raise ValueError(f"param_groups: {argument} should be one of {sorted(RULES)}, but is {name!r}")
    model = _unwrapped(model)
    roles = _roles(model, per_head=per_head)
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
    groups: dict[tuple[Role, Sequence[str]], dict[str, Any]] = {}
    for name, role in roles.items():
        patterns = tuple(pattern for pattern in overrides if fnmatchcase(name, pattern))
        key = (role, patterns)
        if key not in groups:
            changes = {option: value for pattern in patterns for option, value in overrides[pattern].items()}
            default = algorithm if role.is_hidden_matrix else scalar_algorithm
            chosen = changes.get("algorithm", default)
            for_matrices = chosen in RULES and RULES[chosen].work.takes_matrices
            # An algorithm of the other kind comes with the other learning rate.
            takes_lr = role.is_hidden_matrix if chosen == default else for_matrices
            settled: dict[str, Any] = {
                "lr": lr if takes_lr else SCALAR_LR.get(chosen) if scalar_lr is None else scalar_lr,
                "weight_decay": weight_decay if role.decays else 0.0,
                "view": role.view if for_matrices else None,
            }
            options = {option: value for option, value in settled.items() if value is not None} | changes
            groups[key] = _empty_group(role, patterns, chosen, options)
        groups[key]["params"].append((name, parameters[name]))

    def place(key: tuple[Role, Sequence[str]]) -> tuple[bool, ...]:
        role, patterns = key
        return groups[key]["algorithm"] != algorithm, not role.is_hidden_matrix, bool(patterns)

    # Hidden matrices come first, as tools show the lr of the first group.
    return _with_unique_names([groups[key] for key in sorted(groups, key=place)])


def _empty_group(role: Role, patterns: Sequence[str], algorithm: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a param group without parameters, named by its role. All that is special about it is in its reason."""
    given = options.pop("view", None)
    view = {} if given is None else {"view": MatrixView.of(given)}
    return {
        "params": [],
        "name": role.name,
        "reason": "; ".join([role.reason, *map(str, view.values()), *(f"override {text!r}" for text in patterns)]),
        "algorithm": algorithm,
        **options,
        **view,
    }


def _with_unique_names(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number the groups of one name, from the second on. Names are plain words, which any logger takes."""
    count: dict[str, int] = {}
    for group in groups:
        name = group["name"]
        count[name] = count.get(name, 0) + 1
        if count[name] > 1:
            group["name"] = f"{name} {count[name]}"
    return groups


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself, without the wrappers of DistributedDataParallel and torch.compile."""
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def _roles(model: nn.Module, *, per_head: bool) -> dict[str, Role]:
    """Return the role of each parameter that requires gradients, by name, in the model's order."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(param), []).append((plain_name(f"{module_name}.{name}".lstrip(".")), module))
    vocabularies = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    heads = _declared_heads(model)
    known = known_roles(model, per_head=per_head)
    return {
        plain_name(name): _role(plain_name(name), param, owners[id(param)], known.get(id(param)), vocabularies, heads)
        for name, param in model.named_parameters()
        if param.requires_grad
    }


def _declared_heads(model: nn.Module) -> set[nn.Module]:
    """Return the output layers that the model itself tells, or that end an nn.Sequential."""
    heads: set[nn.Module] = set()
    for module in model.modules():
        get_head = getattr(module, "get_output_embeddings", None)
        if callable(get_head) and isinstance(head := get_head(), nn.Module):
            heads.add(head)
    if isinstance(model, nn.Sequential) and len(model) > 1 and isinstance(model[-1], nn.Linear | _ConvNd):
        heads.add(model[-1])
    return heads


def _role(
    name: str,
    param: Tensor,
    owners: list[tuple[str, nn.Module]],
    known: Role | None,
    vocabularies: set[int],
    heads: set[nn.Module],
) -> Role:
    """Return the role of one parameter.

    Args:
        name: its name in the model.
        param: the parameter.
        owners: the modules that have it, with its name in each; several if it is tied.
        known: its role by `known_roles`, if it has one.
        vocabularies: the numbers of rows of the model's embeddings.
        heads: output layers.
    """
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
    if known is None and param.ndim > 2:
        return HIGHER
    matrix = known.view.read(param.shape).matrix(0) if known and known.view else param.shape
    if 1 in matrix and (known is None or known.is_hidden_matrix):
        return ONE_LINE
    if (
        any(module in heads for module in modules)
        or layer in _HEADS
        or (len(path) == 1 and layer in _HEADS_AT_TOP)
        or (known is None and isinstance(modules[0], nn.Linear) and param.shape[0] in vocabularies)
    ):
        return HEAD
    if known is not None:
        return known
    if layer == "router" or (layer == "gate" and param.shape[0] < param.shape[1]):
        return ROUTER
    return HIDDEN
