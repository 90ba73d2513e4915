"""Which algorithm updates which parameter of a model, and why."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from orthon.algorithms import RULES
from orthon.algorithms.options import flag
from orthon.model.asked import check_model, check_overrides, known_rule
from orthon.model.deciding import Deciding
from orthon.model.roles import HIDDEN, Role
from orthon.sharding.matrix_view import MatrixView
from orthon.step.words import warn

# The usual learning rates of parameters that are no hidden matrices.
SCALAR_LR = {"adamw": 3e-3, "lion": 3e-4}


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

    Wrappers do not count, nor models around the model: DistributedDataParallel, torch.compile, checkpointing,
    FullyShardedDataParallel, a LightningModule, PEFT, and the parametrizations of torch.nn.utils. A parameter that a
    module has for itself, such as latents, queries, tables or `A_log`, goes to `scalar_algorithm` without weight decay,
    unless the module is one that is known to multiply by it. So do the angles of OFT. The factors of LoRA go to
    `algorithm`, with updates of full rank and without a factor of the learning rate (`orthon.model.roles.lora`).

    A parameter with the attribute `_no_weight_decay`, or that a method `no_weight_decay` of its model names, has none.
    An output head whose embedding is on another pipeline stage is treated as an embedding, if the model tells: by
    `tie_word_embeddings` or a like switch in its config, or by the attribute `shared_embedding` of the weight.

    Some weights are several matrices, or one matrix stored in another order. These go to `algorithm` with a "view", a
    `MatrixView`: convolutions, `nn.MultiheadAttention`, and known modules of transformers, such as GPT-2's `Conv1D`,
    experts, fused query, key and value, and fused gate and up. A weight with more than two dims in an unknown module
    goes to `scalar_algorithm`. An override with both "algorithm" and "view" changes that. {"view": None} takes a view
    away.

    Args:
        model: any module.
        algorithm: for hidden matrices. Upper case counts as lower case.
        scalar_algorithm: for the rest: "adamw", "lion", or a registered rule that takes parameters of any shape. Upper
            case counts as lower case.
        lr: learning rate of the hidden matrices. None is the optimizer's.
        scalar_lr: learning rate of the rest. None is the usual one of `scalar_algorithm`: 0.003 for AdamW, 0.0003 for
            Lion.
        weight_decay: of hidden matrices, heads, routers and other weights. None is the optimizer's.
        overrides: options by name pattern, such as {"*.mlp.*.weight": {"rank_fraction": 0.5}}. `*` matches any text. A
            parameter that several patterns match takes the options of all of them; where they disagree, the last one
            counts. If an override moves a parameter between algorithms for matrices and others, the learning rate
            changes with it: from `lr` to `scalar_lr`, or back.
        per_head: whether each attention head is a matrix of its own, where the attention module tells how many heads
            there are. A head is a block of rows in the projections of query, key and value, and a block of columns in
            the projection of the output.

    Returns:
        A list of param groups for the constructor of an optimizer, hidden matrices first. Each has "params" with
        (name, tensor) pairs, "name", "reason", "algorithm", and options. Names of groups are unique. Groups of plain
        matrices have no "view". If nothing in the model requires gradients there is one group without parameters.

    Warns:
        UserWarning: for a pattern that matches nothing, and for a model in which nothing requires gradients. Both are
            usual in the stages of a pipeline.

    Raises:
        TypeError: for a model that is none, overrides that are no options by pattern, or a per_head that is no bool.
        ValueError: for an algorithm that is unknown or cannot update the rest, a view that is not allowed, a parameter
            of a lazy module that has no shape yet, or a model without parameters.
    """
    check_model(model, "param_groups")
    algorithm = known_rule("param_groups: algorithm", algorithm)
    scalar_algorithm = known_rule("param_groups: scalar_algorithm", scalar_algorithm, elementwise=True)
    check_overrides(overrides)
    flag(False).check("per_head", per_head, "param_groups")
    deciding = Deciding(model, per_head=per_head)
    if not deciding.places:
        raise ValueError(f"param_groups: {type(model).__name__} has no parameters")
    trained = {param: where[0].name for param, where in deciding.places.items() if param.requires_grad}
    overrides = overrides or {}
    _warn_of_what_is_missing(model, trained.values(), overrides)
    if not trained:
        return [_empty_group(HIDDEN, (), algorithm, {} if lr is None else {"lr": lr})]

    groups: dict[tuple[Role, Sequence[str]], dict[str, Any]] = {}
    for param, name in trained.items():
        role = deciding.role(param)
        patterns = tuple(pattern for pattern in overrides if fnmatchcase(name, pattern))
        changes = {option: value for pattern in patterns for option, value in overrides[pattern].items()}
        if _takes_matrices(changes.get("algorithm")):
            role = role.as_matrix or role
        key = (role, patterns)
        if key not in groups:
            default = algorithm if role.is_hidden_matrix else scalar_algorithm
            chosen = changes.get("algorithm", default)
            for_matrices = _takes_matrices(chosen)
            # An algorithm of the other kind comes with the other learning rate.
            takes_lr = role.is_hidden_matrix if chosen == default else for_matrices
            settled: dict[str, Any] = {
                **{option: value for option, value in role.options if for_matrices and option in RULES[chosen].options},
                "lr": lr if takes_lr else SCALAR_LR.get(chosen) if scalar_lr is None else scalar_lr,
                "weight_decay": weight_decay if role.decays else 0.0,
                "view": role.view if for_matrices else None,
            }
            options = {option: value for option, value in settled.items() if value is not None} | changes
            groups[key] = _empty_group(role, patterns, chosen, options)
        groups[key]["params"].append((name, param))

    def place(key: tuple[Role, Sequence[str]]) -> tuple[bool, ...]:
        role, patterns = key
        return groups[key]["algorithm"] != algorithm, not role.is_hidden_matrix, bool(patterns)

    # Hidden matrices come first, as tools show the lr of the first group.
    result = _with_unique_names([groups[key] for key in sorted(groups, key=place)])
    _check_all_placed(model, result)
    return result


def _takes_matrices(algorithm: object) -> bool:
    return isinstance(algorithm, str) and algorithm in RULES and RULES[algorithm].work.takes_matrices


def _warn_of_what_is_missing(model: nn.Module, names: Collection[str], overrides: Mapping[str, object]) -> None:
    if not names:
        warn(
            f"param_groups: {type(model).__name__} has no parameters that require gradients; there is nothing to train"
        )
        return
    for pattern in overrides:
        if not any(fnmatchcase(name, pattern) for name in names):
            warn(
                f"param_groups: the pattern {pattern!r} in overrides matches no parameter; there are "
                f"{', '.join(list(names)[:3])}, ..."
            )


def _check_all_placed(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that each parameter that requires gradients is in one group, once."""
    given = Counter(id(param) for param in model.parameters() if param.requires_grad)
    placed = Counter(id(param) for group in groups for _, param in group["params"])
    if given != placed:
        missing = [name for name, param in model.named_parameters() if placed[id(param)] != given[id(param)]]
        raise RuntimeError(
            f"param_groups: of {given.total()} parameters of {type(model).__name__} that require gradients, "
            f"{placed.total()} are in groups; it differs for {', '.join(missing[:3]) or 'others'}"
        )


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
    taken: Counter[str] = Counter()
    for group in groups:
        name = group["name"]
        taken[name] += 1
        if taken[name] > 1:
            group["name"] = f"{name} {taken[name]}"
    return groups
