"""The options of a saved state: which of them a param group takes over."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from orthon.algorithms.names import OLD_ADJUST_LR_FN, check_keys
from orthon.algorithms.options import SCHEDULER_KEYS
from orthon.algorithms.rule import options_of
from orthon.saving.matching import Saved
from orthon.sharding.matrix_view import PLAIN
from orthon.step.options import follow_momentum, view_of

Group = dict[str, Any]

# What a group holds beside options. In `state_dict()` these entries do not matter for the meaning of the state.
_LABELS = {"params", "param_names", "seed_names", "name", "reason", "others"}

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
    if not saved:  # nothing is known of a group without parameters
        return {}
    first, known = saved[0], options_of(group)
    options = _options(first.group)
    for other in saved[1:]:
        if other.group is first.group:
            continue
        others = _options(other.group)
        for key in sorted(options.keys() | others.keys(), key=str):
            if _same(options.get(key), others.get(key)):
                continue
            if key not in {"algorithm", "momentum", *known, *SCHEDULER_KEYS}:
                options.pop(key, None)  # of somebody else; the group keeps what it has
                continue
            raise ValueError(
                f"{label}: {key} should be one value, but was saved as {options.get(key)!r} for {first.name!r} and "
                f"as {others.get(key)!r} for {other.name!r}; put them into different groups"
            )
    if options.get("algorithm") != group["algorithm"]:
        raise ValueError(
            f"{label}: algorithm should be {group['algorithm']!r}, but was saved as {options.get('algorithm')!r}"
        )
    if "others" in group:
        options["others"] = group["others"]
    follow_momentum(options)
    for key, before in BEFORE.items():
        if key in known:
            options.setdefault(key, before)
    check_keys(options, f"{label}: saved", by_schedule=True)
    for key, option in known.items():
        if key in options:
            options[key] = option.check(f"saved {key}", options[key], label, by_schedule=True)
    if options.get("view") is not None:
        options["view"] = view_of(options["view"], label, "saved view")
    return options


def _options(saved: Mapping[str, Any]) -> Group:
    """Return what a saved group has beside its parameters, under the names of this version."""
    options = {key: value for key, value in saved.items() if key not in _LABELS}
    if isinstance(options.get(OLD_ADJUST_LR_FN), str):
        options["adjust_lr_fn"] = options.pop(OLD_ADJUST_LR_FN)
    return options


def merged_options(group: Group, saved: Group, label: str) -> Group:
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
