"""A saved state dict → what groups and parameters take over of it, or an error before anything changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from orthon.algorithms import RULES
from orthon.algorithms.options import SCHEDULER_KEYS
from orthon.algorithms.rule import FLOAT_DTYPES
from orthon.algorithms.state import Entry
from orthon.sharding import Layouts, is_dtensor, local, on_meta, placed_like, relocated, takes_part
from orthon.sharding.matrix_view import PLAIN, MatrixView
from orthon.step.member import Member
from orthon.step.names import parameter_names, plain_name

Group = dict[str, Any]

# What a group holds beside options; the ones in `state_dict()` do not matter for what the state means.
_LABELS = {"params", "param_names", "name", "reason"}


@dataclass(frozen=True)
class _Saved:
    """A parameter's place in a saved state dict."""

    name: str  # for errors
    group: Mapping[str, Any]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class _Change:
    """What a parameter takes over.

    Attributes:
        param: the parameter.
        member: the parameter as it is to be, without storage.
        expected: its state then, without storage.
        saved: its state as it was saved, which differs from that in ranks alone.
    """

    param: Tensor
    member: Member
    expected: Mapping[str, Tensor]
    saved: Mapping[str, Tensor]


def fit_state(
    state_dict: Mapping[str, Any], groups: Sequence[Group], layouts: Layouts, owner: str
) -> tuple[list[Group], dict[Tensor, dict[str, Tensor]]]:
    """Return the param groups and the state that an optimizer has after it has loaded a state dict.

    Parameters are found by their names where both sides have them, otherwise by their positions. Everything is
    checked before anything is communicated.

    Args:
        state_dict: as `state_dict()` returned it, perhaps of another run.
        groups: of the optimizer. They are not changed.
        layouts: of its parameters.
        owner: the optimizer, for errors.

    Raises:
        TypeError, ValueError: for a state that does not fit; they name the entry.
    """
    where = f"{owner}: loading a state"
    _check_structure(state_dict, where)
    new_groups, changes = [], []
    for index, (group, saved) in enumerate(zip(groups, _matched(state_dict, groups, where), strict=True)):
        label = f"{where}: param group {group.get('name', index)!r}"
        options = _saved_options(group, saved, label)
        new_group = _merged_options(group, options, label)
        new_groups.append(new_group)
        for name, param, its in zip(parameter_names(group, index), group["params"], saved, strict=True):
            if its.state and takes_part(param):
                before = {**new_group, **options}
                changes.append(_change(name, param, before, new_group, its.state, layouts, where))
    return new_groups, {change.param: _loaded(change) for change in changes}


def _check_structure(state_dict: Mapping[str, Any], where: str) -> None:
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(f"{where}: should be a dict with 'state' and 'param_groups', but is {_kind(state_dict)}")
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list | tuple):
        raise TypeError(f"{where}: 'param_groups' should be a list, but is {_kind(groups)}")
    for index, group in enumerate(groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list | tuple):
            raise TypeError(f"{where}: param_groups[{index}] should be a dict with a list 'params'")
    if not isinstance(state, Mapping):
        raise TypeError(f"{where}: 'state' should be a dict, but is {_kind(state)}")
    keys = [key for group in groups for key in group["params"]]
    known = set(keys)
    if len(known) < len(keys):
        raise ValueError(f"{where}: 'param_groups' should have every parameter once, but are {keys}")
    for key, entries in state.items():
        if key not in known:
            raise ValueError(f"{where}: 'state' has {key!r}, which is in none of its param groups")
        if not isinstance(entries, Mapping):
            raise TypeError(f"{where}: state[{key!r}] should be a dict, but is {_kind(entries)}")


def _matched(state_dict: Mapping[str, Any], groups: Sequence[Group], where: str) -> list[list[_Saved]]:
    """Return for each parameter of each group what was saved of it."""
    saved, state = state_dict["param_groups"], state_dict["state"]
    names = _names(saved)
    if names is not None and all("param_names" in group for group in groups):
        places = {
            name: _Saved(name, group, state.get(key, {}))
            for group, of_group in zip(saved, names, strict=True)
            for name, key in zip(of_group, group["params"], strict=True)
        }
        own = [parameter_names(group, index) for index, group in enumerate(groups)]
        here = {name for of_group in own for name in of_group}
        if here != places.keys():
            missing, unknown = sorted(here - places.keys()), sorted(places.keys() - here)
            raise ValueError(
                f"{where}: it should have the parameters of this optimizer, but lacks {_some(missing)} and has "
                f"{_some(unknown)}"
            )
        return [[places[name] for name in of_group] for of_group in own]
    sizes, expected = [len(group["params"]) for group in saved], [len(group["params"]) for group in groups]
    if sizes != expected:
        raise ValueError(f"{where}: its param groups should have {expected} parameters, but have {sizes}")
    return [
        [_Saved(str(key), group, state.get(key, {})) for key in group["params"]]  # the positions are this optimizer's
        for group in saved
    ]


def _names(saved: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """Return the names of saved parameters, or None if there are none, or positions that are to be used instead.

    What torch.distributed.checkpoint hands over has names as keys, in the order of the optimizer's own parameters;
    "param_names" are those of the groups as they were saved.
    """
    result = []
    for group in saved:
        names = group.get("param_names")
        if not isinstance(names, list | tuple) or any(isinstance(key, str) for key in group["params"]):
            return None
        result.append([plain_name(str(name)) for name in names])
        if len(names) != len(group["params"]):
            return None
    every = [name for names in result for name in names]
    return result if len(set(every)) == len(every) else None


def _saved_options(group: Group, saved: Sequence[_Saved], label: str) -> Group:
    """Return the options with which the parameters of a group were saved."""
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
    return options


def _merged_options(group: Group, saved: Group, label: str) -> Group:
    """Return a group with the saved options, as far as each is one that a state brings along."""
    rule, result = RULES[group["algorithm"]], dict(group)
    for key, value in saved.items():
        how = rule.options[key].loaded if key in rule.options else "saved"
        if how == "same" and value != group[key] and {None, PLAIN} != {value, group[key]}:  # no view is the plain one
            raise ValueError(
                f"{label}: {key} should be {value!r}, with which the state was saved, as it means something else with "
                f"another, but is {group[key]!r}"
            )
        if how == "saved":
            result[key] = value.clone() if isinstance(value, Tensor) else value
    return result


def _change(
    name: str,
    param: Tensor,
    before: Group,
    after: Group,
    saved: Mapping[str, Any],
    layouts: Layouts,
    where: str,
) -> _Change:
    """Check the saved state of one parameter against the options with which it was saved."""
    where = f"{where}: parameter {name!r}"
    try:
        then, now = (_member(name, param, group, layouts) for group in (before, after))
    except (ValueError, NotImplementedError) as error:  # of a view that does not fit
        raise type(error)(f"{where}: {error}") from error
    expected = new = then.new_state()
    if any(before[key] != after[key] for key, option in now.rule.options.items() if option.loaded == "own"):
        new = now.new_state()
    for keys, why in ((expected, ""), (new, " by the rank of this optimizer; make it with the one that was saved")):
        if saved.keys() != keys.keys():
            raise ValueError(f"{where}: entries should be {sorted(keys)}{why}, but are {sorted(saved, key=str)}")
    fixed = _fixed_dtypes(then)
    for key, like in expected.items():
        value = saved[key]
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise TypeError(f"{where}: {key!r} should be a dense tensor, but is {_kind(value)}")
        if value.shape != like.shape:
            raise ValueError(f"{where}: shape of {key!r} should be {tuple(like.shape)}, but is {tuple(value.shape)}")
        if value.dtype not in FLOAT_DTYPES:
            allowed = ", ".join(map(str, FLOAT_DTYPES))
            raise TypeError(f"{where}: dtype of {key!r} should be one of {allowed}, but is {value.dtype}")
        if fixed.get(key.partition(".")[0], value.dtype) != value.dtype:
            raise ValueError(
                f"{where}: dtype of {key!r} should be {like.dtype}, as its options say, but is {value.dtype}"
            )
    return _Change(param, now, new, saved)


def _member(name: str, param: Tensor, group: Group, layouts: Layouts) -> Member:
    rule, layout = RULES[group["algorithm"]], layouts(param)
    matrices = layouts.matrices(layout, group["view"]) if rule.work.takes_matrices else None
    return Member(name, on_meta(param), None, group, rule, layout, matrices, averages=False)


def _fixed_dtypes(member: Member) -> dict[str, torch.dtype]:
    """Return the dtypes that do not follow from the parameter's, by the names of entries."""
    rule, group, shape = member.rule, member.group, member.layout.shape
    of_stacks = list(member.entries.values()) if member.matrices is not None else [rule.entries(shape, group)]
    return {
        key: entry.dtype
        for entries in of_stacks
        for key, entry in entries.items()
        if isinstance(entry, Entry) and entry.dtype is not None
    }


def _loaded(change: _Change) -> dict[str, Tensor]:
    """Return a parameter's new state; where tensors lie otherwise than the parameter does, all ranks together."""
    state = {}
    for key, like in change.expected.items():
        value = change.saved[key].detach()
        if value.shape != like.shape:
            value = _of_other_rank(value, replace(change.member, param=change.param).new_state()[key])
        value = placed_like(value, like)
        if value.ndim and not change.member.rule.work.takes_matrices:
            value = value.to(like.dtype)  # torch's own rules take no other
        # A counter is where this optimizer keeps it: on the CPU, or with the parameter.
        device = local(change.param).device if value.ndim or like.is_meta else like.device
        state[key] = value.to(device, copy=True)
    return state


def _of_other_rank(value: Tensor, start: Tensor) -> Tensor:
    """Return the saved factor with as many columns as a new one, of which it takes those that are missing.

    The power iteration orthonormalizes the first columns first, so that they come to belong to the largest singular
    values: these remain.
    """
    whole = value.full_tensor() if is_dtensor(value) else value
    columns = min(whole.shape[-1], start.shape[-1])
    whole = pad(whole[..., :columns], (0, start.shape[-1] - columns))
    part = local(start).to(value.dtype)
    part[..., :columns] = local(placed_like(whole, start))[..., :columns]
    return relocated(start, part)


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, float | int | Tensor) and isinstance(b, float | int | Tensor) and float(a) == float(b)
    return a == b


def _kind(value: object) -> str:
    return type(value).__name__


def _some(names: Sequence[str]) -> str:
    """Return some of the names, in words."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more if names else "none"
