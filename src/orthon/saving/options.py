"""The options of a saved state: which of them a param group takes over."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from orthon.algorithms import RULES
from orthon.algorithms.names import OLD_ADJUST_LR_FN, check_keys
from orthon.algorithms.options import SCHEDULER_KEYS, Group, MutableGroup
from orthon.algorithms.rule import options_of, rule_for, rule_name
from orthon.saving.matching import Saved
from orthon.sharding.matrix_view import PLAIN, MatrixView
from orthon.step.cycled import Seen, follow_momentum
from orthon.step.options import view_of

# What a group holds beside options. In `state_dict()` these entries do not matter for the meaning of the state.
_LABELS = {"params", "param_names", "seed_names", "name", "reason", "others"}

# What each rule did before these options of it existed: a state saved without one goes on so.
BEFORE: Mapping[str, Mapping[str, Any]] = {
    "dion": {"tail": 0.0, "residual_momentum": 1.0, "nesterov": False},
    "dion2": {"selection_side": "short"},
    "dion3": {"selection_side": "short"},
}


def saved_options(group: Group, saved: Sequence[Saved], label: str) -> MutableGroup:
    """Return the options with which the parameters of a group were saved.

    Where a group has "others", its matrices and its other parameters may come from different groups, or go to such.

    Args:
        group: a param group of the optimizer that loads them.
        saved: what was saved of each of its parameters.
        label: names the group; starts the messages of errors.

    Raises:
        TypeError, ValueError: if these are not one set of options, or not allowed for the group's algorithm.
    """
    if not saved:  # nothing is known of a group without parameters
        return {}
    known = options_of(group)
    by_rule: dict[str, tuple[str, MutableGroup]] = {}  # the first parameter of each rule, and its options
    for (rule, saved_rule, _), its in _kinds(group, saved, label).items():
        options = _options(its.group, saved_rule, group.get("others"))
        if rule in by_rule:
            first, those = by_rule[rule]
            _check_same(those, options, those.keys() | options.keys(), known, (label, first, its.name))
        else:
            by_rule[rule] = its.name, options
    for rule, (_, options) in by_rule.items():
        if options["algorithm"] != rule:
            raise _another_algorithm(rule, options["algorithm"], label)
        options["algorithm"] = group["algorithm"]
    (first, options), *rest = by_rule.values()
    for name, those in rest:
        _check_same(options, those, options.keys() & those.keys(), known, (label, first, name))
        options = {**those, **options}
    if "others" in group:
        options["others"] = group["others"]
    for rule in by_rule:
        options = {**BEFORE.get(rule, {}), **options}
    check_keys(options, f"{label}: saved", by_schedule=True)
    for key, option in known.items():
        if key in options:
            options[key] = option.check(f"saved {key}", options[key], label, by_schedule=True)
    if options.get("view") is not None:
        options["view"] = view_of(options["view"], label, "saved view")
    return options


def _kinds(group: Group, saved: Sequence[Saved], label: str) -> dict[tuple[str, str, int], Saved]:
    """Return the first saved parameter of each kind: of one rule here, one in the saved group, and one such group."""
    kinds: dict[tuple[str, str, int], Saved] = {}
    for param, its in zip(group["params"] or [None], saved, strict=True):
        if param is None:  # of a group without parameters
            rule, saved_rule = group["algorithm"], its.group.get("algorithm")
        else:
            rule, saved_rule = rule_for(param, group).name, rule_name(param, its.group)
        if not isinstance(saved_rule, str):
            raise _another_algorithm(rule, saved_rule, label)
        kinds.setdefault((rule, saved_rule, id(its.group)), its)
    return kinds


def _another_algorithm(rule: str, saved: object, label: str) -> ValueError:
    return ValueError(f"{label}: algorithm should be {rule!r}, but was saved as {saved!r}")


def _options(saved: Mapping[str, Any], rule: str, others: str | None) -> MutableGroup:
    """Return what a saved group has beside its parameters, under the names of this version.

    Args:
        saved: the group.
        rule: that has updated those of its parameters about which it is.
        others: of the group that loads them. With the same, it takes all options, also those of the other rule.
    """
    options = {key: value for key, value in saved.items() if key not in _LABELS}
    if isinstance(options.get(OLD_ADJUST_LR_FN), str):
        options["adjust_lr_fn"] = options.pop(OLD_ADJUST_LR_FN)
    follow_momentum(options)
    if saved.get("others") != others and rule in RULES:
        of_both = {name for each in (options.get("algorithm"), saved.get("others")) for name in _options_of_rule(each)}
        options = {key: value for key, value in options.items() if key not in of_both - RULES[rule].options.keys()}
    return {**options, "algorithm": rule}


def _options_of_rule(name: object) -> Collection[str]:
    return RULES[name].options if isinstance(name, str) and name in RULES else ()


def _check_same(
    options: MutableGroup,
    others: MutableGroup,
    keys: Collection[str],
    known: Collection[str],
    names: tuple[str, str, str],
) -> None:
    """Make sure that two saved sets of options have the same values. Keys that are no options are left out otherwise.

    Args:
        options: of one parameter.
        others: of another one.
        keys: to be compared.
        known: the options that the group which loads them may have.
        names: of that group, and of the two parameters.

    Raises:
        ValueError: for an option with two values.
    """
    label, first, other = names
    for key in sorted(keys, key=str):
        if _same(options.get(key), others.get(key)):
            continue
        if key not in {"algorithm", "momentum", *known, *SCHEDULER_KEYS}:
            options.pop(key, None)  # of somebody else; the group keeps what it has
            others.pop(key, None)
            continue
        raise ValueError(
            f"{label}: {key} should be one value, but was saved as {options.get(key)!r} for {first!r} and "
            f"as {others.get(key)!r} for {other!r}; put them into different groups"
        )


def written(group: MutableGroup, seen: Seen | None) -> None:
    """Make a group of a state dict one that any loader takes.

    Args:
        group: the copy that the state dict has.
        seen: what the optimizer's own group had in the last step.
    """
    follow_momentum(group, seen)
    if isinstance(group.get("view"), MatrixView):
        group["view"] = group["view"].as_dict()


def merged_options(group: Group, saved: Group, label: str) -> MutableGroup:
    """Return a param group with those of the saved options that a state brings along.

    Raises:
        ValueError: if an option differs that must be the same, as the state means something else otherwise.
    """
    known, result = options_of(group), dict(group)
    follow_momentum(result)  # what a new scheduler has set gives way to what is saved
    for key, value in saved.items():
        how = known[key].loaded if key in known else "saved"
        if how == "same" and value != group[key] and {None, PLAIN} != {value, group[key]}:  # no view is the plain one
            raise ValueError(
                f"{label}: {key} should be {value!r}, as when the state was saved, but is {group[key]!r}; the state "
                "means something else with another value"
            )
        if how == "saved":
            result[key] = value.clone() if isinstance(value, Tensor) else deepcopy(value)
    return result


def _same(a: object, b: object) -> bool:
    """Return whether two options have one value; a number and a tensor may be equal."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, float | int | Tensor) and isinstance(b, float | int | Tensor) and float(a) == float(b)
    return a == b
