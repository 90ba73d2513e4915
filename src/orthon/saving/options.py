"""The options of a saved state: which of them a param group takes over."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from orthon.algorithms import RULES
from orthon.algorithms.options import SCHEDULER_KEYS
from orthon.saving.matching import Saved
from orthon.sharding.matrix_view import PLAIN, MatrixView

Group = dict[str, Any]

# What a group holds beside options. In `state_dict()` these entries do not matter for the meaning of the state.
_LABELS = {"params", "param_names", "seed_names", "name", "reason"}

# What rules did before these options existed: a state saved without one goes on so.
BEFORE = {"selection_side": "short"}


def saved_options(group: Group, saved: Sequence[Saved], label: str) -> Group:
    """Return the options with which the parameters of a group were saved.

    Args:
        group: a param group of the optimizer that loads them.
        saved: what was saved of each of its parameters.
        label: names the group; starts the messages of errors.

    Raises:
        TypeError, ValueError: if these are not one set of options, or not allowed for the group's algorithm.
    """
    first, rule = saved[0], RULES[group["algorithm"]]
    options = {key: value for key, value in first.group.items() if key not in _LABELS}
    for other in saved[1:]:
        if other.group is first.group:
            continue
        for key in sorted((options.keys() | other.group.keys()) - _LABELS):
            if not _same(options.get(key), other.group.get(key)):
                raise ValueError(
                    f"{label}: {key} should be one value, but was saved as {options.get(key)!r} for {first.name!r} and "
                    f"as {other.group.get(key)!r} for {other.name!r}; put them into different groups"
                )
    if options.get("algorithm") != group["algorithm"]:
        raise ValueError(
            f"{label}: algorithm should be {group['algorithm']!r}, but was saved as {options.get('algorithm')!r}"
        )
    known = {"algorithm", *rule.options, *SCHEDULER_KEYS, *group}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{label}: unknown saved option {key!r} for {rule.name}")
        if key in rule.options:
            rule.options[key].check(f"saved {key}", value, label)
    if options.get("view") is not None:
        try:
            options["view"] = MatrixView.of(options["view"])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{label}: saved view: {error}") from error
    for key, value in BEFORE.items():
        if key in rule.options:
            options.setdefault(key, value)
    return options


def merged_options(group: Group, saved: Group, label: str) -> Group:
    """Return a param group with those of the saved options that a state brings along.

    Raises:
        ValueError: if an option differs that must be the same, as the state means something else otherwise.
    """
    rule, result = RULES[group["algorithm"]], dict(group)
    for key, value in saved.items():
        how = rule.options[key].loaded if key in rule.options else "saved"
        if how == "same" and value != group[key] and {None, PLAIN} != {value, group[key]}:  # no view is the plain one
            raise ValueError(
                f"{label}: {key} should be {value!r}, as when the state was saved, but is {group[key]!r}; the state "
                "means something else with another value"
            )
        if how == "saved":
            result[key] = value.clone() if isinstance(value, Tensor) else value
    return result


def _same(a: object, b: object) -> bool:
    """Return whether two options have one value; a number and a tensor may be equal."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, float | int | Tensor) and isinstance(b, float | int | Tensor) and float(a) == float(b)
    return a == b
