"""Param groups: checked as a whole before anything changes, with all options filled in."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from orthon.algorithms import RULES, Rule
from orthon.algorithms.options import SCHEDULER_KEYS
from orthon.sharding import check_placements
from orthon.sharding.matrix_view import MatrixView
from orthon.step.capture import check_options
from orthon.step.names import parameter_names

# What a param group may hold beside the options of its rule.
_GROUP_KEYS = {"params", "param_names", "seed_names", "name", "reason", "algorithm", *SCHEDULER_KEYS}


def check_defaults(algorithm: str, options: Mapping[str, Any], owner: str) -> None:
    """Raise a ValueError or TypeError for an option that no algorithm has, or that has a value that is not allowed."""
    rules = [rule_of(algorithm, owner), *RULES.values()]
    for name, value in options.items():
        known = [rule.options[name] for rule in rules if name in rule.options]
        if not known:
            raise ValueError(f"{owner}: unknown option {name!r}; no algorithm has it")
        known[0].check(name, value, owner)


def completed(
    given: object, others: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any], *, nonfinite: str, owner: str
) -> dict[str, Any]:
    """Return a param group with all its options.

    Args:
        given: the group, as the user gives it. It is not changed.
        others: the groups that there are already.
        defaults: of the optimizer.
        nonfinite: of the optimizer.
        owner: the optimizer, for errors.

    Raises:
        TypeError, ValueError, NotImplementedError: for a group, an option or a parameter that cannot be used.
    """
    if not isinstance(given, dict) or "params" not in given:
        raise TypeError(f"{owner}: a param group should be a dict with 'params', but is {given!r}")
    group = dict(given)
    label = f"{owner}: param group {group.get('name', len(others))!r}"
    rule = rule_of(group.setdefault("algorithm", defaults["algorithm"]), label)
    for key in group.keys() - _GROUP_KEYS:
        if key not in rule.options:
            allowed = ", ".join(sorted(rule.options))
            raise ValueError(f"{label}: unknown option {key!r} for {rule.name}; it takes {allowed}")
    for name, option in rule.options.items():
        option.check(name, group.setdefault(name, defaults.get(name, option.default)), label)
    check_options(group, nonfinite, label)
    if group.get("view") is not None:
        group["view"] = _view(group["view"], label)
    _separate_names(group, label)
    _check_parameters(group, rule, others, owner)
    return group


def rule_of(algorithm: object, where: str) -> Rule:
    """Return the rule of this name, or raise a ValueError that `where` starts."""
    if algorithm not in RULES:
        allowed = ", ".join(map(repr, sorted(RULES)))
        raise ValueError(f"{where}: algorithm should be one of {allowed}, but is {algorithm!r}")
    return RULES[cast(str, algorithm)]


def _check_parameters(group: dict[str, Any], rule: Rule, others: Sequence[Mapping[str, Any]], owner: str) -> None:
    taken = {id(p) for other in others for p in other["params"]}
    taken_names = {name for i, other in enumerate(others) for name in parameter_names(other, i)}
    for name, param in zip(parameter_names(group, len(others)), group["params"], strict=True):
        where = f"{owner}: parameter {name!r}"
        if not isinstance(param, Tensor):
            raise TypeError(f"{where}: should be a tensor, but is a {type(param).__name__}")
        if id(param) in taken:
            raise ValueError(f"{where}: is given twice; every parameter should be in one group, once")
        taken.add(id(param))
        if name in taken_names:
            raise ValueError(f"{where}: another parameter has this name; names should be unique")
        taken_names.add(name)
        try:
            check_placements(param)
        except NotImplementedError as error:
            raise NotImplementedError(f"{where}: {error}") from error
        rule.check_parameter(param, group, where)


def _view(value: MatrixView | Mapping[str, Any], label: str) -> MatrixView:
    try:
        return MatrixView.of(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: view: {error}") from error


def _separate_names(group: dict[str, Any], label: str) -> None:
    """Turn the group's (name, tensor) pairs into "params" and "param_names"."""
    params = group["params"]
    if isinstance(params, set):
        raise TypeError(f"{label}: params should have an order, but is a set; give a list")
    params = [params] if isinstance(params, Tensor) else list(params)
    if not params:
        raise ValueError(f"{label}: params should hold at least one parameter, but is empty")
    named = [isinstance(p, tuple) for p in params]
    if any(named):
        if not all(named):
            raise ValueError(f"{label}: either all of params or none should be (name, tensor) pairs")
        group["param_names"], params = ([pair[i] for pair in params] for i in (0, 1))
    if len(group.get("param_names", params)) != len(params):
        raise ValueError(
            f"{label}: param_names should name each of {len(params)} params, but has {len(group['param_names'])}"
        )
    group["params"] = params
