"""Param groups: checked as a whole before anything changes, with all options filled in."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from orthon.algorithms import RULES
from orthon.algorithms.names import mistaken
from orthon.algorithms.rule import rule_for
from orthon.sharding import check_placements
from orthon.step.names import parameter_names
from orthon.step.options import OptionCheck, plain_options, rule_of


def check_defaults(algorithm: str, options: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return an optimizer's options as its param groups keep them.

    Raises:
        TypeError, ValueError: for an option that no algorithm has, or that has a value that is not allowed.
    """
    main, checked = rule_of(algorithm, owner), {}
    for name, value in options.items():
        known = [rule.options[name] for rule in (main, *RULES.values()) if name in rule.options]
        if not known:
            raise ValueError(
                f"{owner}: unknown option {name!r}{mistaken(name, None, main.options)}; no algorithm has it"
            )
        checked[name] = known[0].check(name, value, owner)
    return checked


def shown_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an optimizer as other programs read them, in `defaults`."""
    main = RULES[given["algorithm"]].options
    first_beta = given["betas"][0] if "betas" in given else main["betas"].default[0] if "betas" in main else 0.0
    momentum = main["momentum"].default if "momentum" in main else first_beta
    shown = {"lr": main["lr"].default, "momentum": momentum, **given}
    return plain_options({name: value for name, value in shown.items() if name != "betas"})


def completed(given: object, others: Sequence[Mapping[str, Any]], check: OptionCheck) -> dict[str, Any]:
    """Return a param group with all its options.

    Args:
        given: the group, as the user gives it. It is not changed.
        others: the groups that there are already.
        check: of the optimizer's options.

    Raises:
        TypeError, ValueError, NotImplementedError: for a group, an option or a parameter that cannot be used.
    """
    if not isinstance(given, dict) or "params" not in given:
        raise TypeError(f"{check.owner}: a param group should be a dict with 'params', but is {given!r}")
    group = dict(given)
    check.complete(group, len(others), by_schedule=False)
    _separate_names(group, check.label(group, len(others)))
    if not group["params"] and any("param_names" in other for other in others):
        group["param_names"] = []  # torch wants names in all groups or in none
    _check_parameters(group, others, check.owner)
    return group


def name_empty_groups(groups: Sequence[dict[str, Any]], added: Mapping[str, Any]) -> None:
    """Give the groups without parameters an empty list of names, if a group that is added has names."""
    for group in groups:  # torch wants names in all groups or in none
        if "param_names" in added and not group["params"]:
            group.setdefault("param_names", [])


def _check_parameters(group: dict[str, Any], others: Sequence[Mapping[str, Any]], owner: str) -> None:
    taken = {id(p) for other in others for p in other["params"]}
    *others_names, names = parameter_names([*others, group])
    taken_names = {name for of_other in others_names for name in of_other}
    for name, param in zip(names, group["params"], strict=True):
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
        rule_for(param, group).check_parameter(param, group, where)


def _separate_names(group: dict[str, Any], label: str) -> None:
    """Turn the group's (name, tensor) pairs into "params" and "param_names"."""
    params = group["params"]
    if isinstance(params, set):
        raise TypeError(f"{label}: params should have an order, but is a set; give a list")
    params = [params] if isinstance(params, Tensor) else list(params)
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
