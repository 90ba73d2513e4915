"""Param groups: checked as a whole before anything changes, with all options filled in."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from orthon.algorithms import RULES
from orthon.algorithms.names import mistaken
from orthon.algorithms.rule import is_plain_matrix, options_of, rule_for
from orthon.optimizers.known import KnownParameters
from orthon.sharding import check_placements
from orthon.step.names import parameter_names
from orthon.step.options import OptionCheck, plain_options, rule_of


def check_defaults(algorithm: str, options: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return an optimizer's options as its param groups keep them.

    Raises:
        TypeError, ValueError: for an option that no algorithm has, or that has a value that is not allowed.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"{owner}: options should be a dict of options by name, but is {options!r}")
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


def completed(
    given: object, others: Sequence[Mapping[str, Any]], check: OptionCheck, known: KnownParameters
) -> dict[str, Any]:
    """Return a param group with all its options. No other group holds the same tensor for one of them.

    Args:
        given: the group, as the user gives it. It is not changed.
        others: the groups that there are already.
        check: of the optimizer's options.
        known: the parameters of the model for which the optimizer was made.

    Raises:
        TypeError, ValueError, NotImplementedError: for a group, an option or a parameter that cannot be used.
    """
    if not isinstance(given, dict) or "params" not in given:
        raise TypeError(f"{check.owner}: a param group should be a dict with 'params', but is {given!r}")
    group, label = dict(given), check.label(given, len(others))
    _separate_names(group, label)
    if known.others is not None and "algorithm" not in group and not all(map(_is_matrix, group["params"])):
        group.setdefault("others", known.others)
    check.complete(group, len(others), by_schedule=False)
    _take_names(group, others, known)
    _check_parameters(group, others, check.owner)
    _check_names(group, others, label)
    _take_own_tensors(group, others)
    return group


def name_empty_groups(groups: Sequence[dict[str, Any]], added: Mapping[str, Any]) -> None:
    """Give the groups without parameters an empty list of names, if a group that is added has names."""
    for group in groups:  # torch wants names in all groups or in none
        if "param_names" in added and not group["params"]:
            group.setdefault("param_names", [])


def _is_matrix(param: object) -> bool:
    return isinstance(param, Tensor) and is_plain_matrix(param)


def _take_own_tensors(group: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Give a group copies of those options that are tensors of another group, or of another option of its own.

    Otherwise a scheduler that changes a tensor in place, group by group, would change it once for each of them.
    """
    taken = {id(value) for other in others for value in other.values() if isinstance(value, Tensor)}
    for name in options_of(group):
        value = group[name]
        if isinstance(value, Tensor):
            if id(value) in taken:
                group[name] = value = value.detach().clone()
            taken.add(id(value))


def _take_names(group: dict[str, Any], others: Sequence[Mapping[str, Any]], known: KnownParameters) -> None:
    """Give a group names if all are known, and no other has none. Torch wants names in all groups or in none."""
    if "param_names" in group or any(other["params"] and "param_names" not in other for other in others):
        return
    names = known.names(group["params"])
    if names is not None and (names or any("param_names" in other for other in others)):
        group["param_names"] = names


def _check_names(group: Mapping[str, Any], others: Sequence[Mapping[str, Any]], label: str) -> None:
    """Raise a ValueError for names in some groups alone. Groups without parameters do not count."""
    filled = [other for other in others if other["params"]]
    has_names, theirs = "param_names" in group, any("param_names" in other for other in filled)
    if not filled or not group["params"] or has_names == theirs or not all(p.is_leaf for p in group["params"]):
        return  # of non-leaf tensors torch tells
    if theirs:
        raise ValueError(
            f"{label}: its parameters have no names, but those of other groups have, and not all of them are of the "
            "model of for_model; give (name, tensor) pairs"
        )
    raise ValueError(
        f"{label}: its parameters have names, but those of other groups have none; give tensors, or make the optimizer "
        "with model.named_parameters() or by for_model"
    )


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


def check_iterable(params: object, where: str) -> None:
    """Raise a TypeError that `where` starts, if these are no parameters that one can go through, or one tensor."""
    if isinstance(params, Tensor):
        raise TypeError(f"{where}: params should be an iterable of tensors, but is one tensor")
    try:
        iter(params)  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"{where}: params should be an iterable of tensors, but is {params!r}") from None


def _separate_names(group: dict[str, Any], label: str) -> None:
    """Turn the group's (name, tensor) pairs into "params" and "param_names"."""
    params = group["params"]
    if isinstance(params, set):
        raise TypeError(f"{label}: params should have an order, but is a set; give a list")
    if isinstance(params, Tensor):
        params = [params]
    check_iterable(params, label)
    params = list(params)
    named = [isinstance(p, tuple) for p in params]
    if any(named):
        if not all(named):
            raise ValueError(f"{label}: either all of params or none should be (name, tensor) pairs")
        if any(len(pair) != 2 for pair in params):
            raise ValueError(f"{label}: params should be (name, tensor) pairs, but one of them is no pair")
        group["param_names"], params = ([pair[i] for pair in params] for i in (0, 1))
    names = group.get("param_names", [""] * len(params))
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{label}: param_names should be a list of strings, but is {names!r}")
    if len(names) != len(params):
        raise ValueError(f"{label}: param_names should name each of {len(params)} params, but has {len(names)}")
    group["params"] = params
