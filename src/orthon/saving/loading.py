"""How a saved state dict becomes the param groups and the state of an optimizer.

It either fits, or an error is raised before anything changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from orthon.algorithms.options import Group, MutableGroup
from orthon.algorithms.rule import RULES, rule_for
from orthon.algorithms.state import Entry
from orthon.linalg.precision import FLOAT_DTYPES
from orthon.saving.finite import check_finite
from orthon.saving.matching import Saved, match, saved_of_empty
from orthon.saving.options import merged_options, saved_options
from orthon.saving.shown import kind_of
from orthon.sharding import Layouts, is_dtensor, local, on_meta, placed_like, relocated, takes_part
from orthon.step.counter import counter
from orthon.step.member import Member
from orthon.step.names import parameter_names, seed_names


@dataclass(frozen=True)
class _Change:
    """The new state of one parameter, checked but not yet brought to where it belongs.

    Attributes:
        param: the parameter.
        member: the parameter with its new options, without storage.
        expected: its new state, without storage.
        saved: its saved state. Its tensors have the shapes of the new ones, except for the number of columns of a right
            factor, and may lie in another way on the processes.
    """

    param: Tensor
    member: Member
    expected: Mapping[str, Tensor]
    saved: Mapping[str, Tensor]


def fit_state(
    state_dict: Mapping[str, Any], groups: Sequence[Group], layouts: Layouts, owner: str
) -> tuple[list[MutableGroup], dict[Tensor, dict[str, Tensor]]]:
    """Return the param groups and the state that an optimizer has after it has loaded a state dict.

    Parameters are found by their names if both sides have them, otherwise by their positions. Everything is checked
    before anything is communicated.

    Args:
        state_dict: as `state_dict()` returned it, perhaps in another run.
        groups: the optimizer's param groups. They are not changed.
        layouts: how its parameters lie on the processes.
        owner: the optimizer's name, for errors.

    Raises:
        TypeError, ValueError: for a state that does not fit; they name the entry.
    """
    where = f"{owner}: loading a state"
    new_groups, changes = [], []
    names = parameter_names(groups)
    for index, (group, saved) in enumerate(zip(groups, match(state_dict, groups, where), strict=True)):
        label = f"{where}: param group {group.get('name', index)!r}"
        options = saved_options(group, saved or saved_of_empty(state_dict, groups, index), label)
        new_group = merged_options(group, options, label)
        RULES[new_group["algorithm"]].work.check_options(new_group, label)
        _take_names(new_group, index, saved)
        new_groups.append(new_group)
        for name, param, its in zip(names[index], group["params"], saved, strict=True):
            if its.state and takes_part(param):
                before = {**new_group, **options}
                changes.append(_change(name, its.seed, param, before, new_group, its.state, layouts, where))
    check_finite([(change.member, change.saved) for change in changes], where)
    return new_groups, {change.param: _loaded(change) for change in changes}


def _take_names(group: MutableGroup, index: int, saved: Sequence[Saved]) -> None:
    """Give a group the names of its parameters if it has none, as torch does, and the seeds that they had."""
    given = [its.given_name for its in saved]
    if "param_names" not in group and None not in given:
        group["param_names"] = given
    group.pop("seed_names", None)
    if (seeds := [its.seed for its in saved]) != seed_names(group, index):
        group["seed_names"] = seeds


def _change(
    name: str,
    seed: str,
    param: Tensor,
    before: MutableGroup,
    after: MutableGroup,
    saved: Mapping[str, Any],
    layouts: Layouts,
    where: str,
) -> _Change:
    """Return what becomes of one parameter, after checking its saved state.

    Args:
        name: the parameter's name, for errors.
        seed: from what its random numbers follow.
        param: the parameter.
        before: its options when the state was saved.
        after: its options from now on.
        saved: its saved state.
        layouts: how parameters lie on the processes.
        where: starts the messages of errors.
    """
    where = f"{where}: parameter {name!r}"
    try:
        then, now = (_member(name, seed, param, group, layouts) for group in (before, after))
    except (ValueError, NotImplementedError) as error:  # the view does not fit
        raise type(error)(f"{where}: {error}") from error
    expected = new = then.new_state()
    if any(before[key] != after[key] for key, option in now.rule.options.items() if option.loaded == "own"):
        new = now.new_state()
    for keys, why in ((expected, ""), (new, " by the rank of this optimizer; make it with the one that was saved")):
        if saved.keys() != keys.keys():
            raise ValueError(f"{where}: entries should be {sorted(keys)}{why}, but are {sorted(saved, key=str)}")
    fixed, counters = _fixed_dtypes(then), then.counters
    saved = {key: counter(value, f"{where}: {key!r}") if key in counters else value for key, value in saved.items()}
    for key, like in expected.items():
        value = saved[key]
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise TypeError(f"{where}: {key!r} should be a dense tensor, but is {kind_of(value)}")
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


def _member(name: str, seed: str, param: Tensor, group: MutableGroup, layouts: Layouts) -> Member:
    """Return the parameter with these options, without storage."""
    rule, layout = rule_for(param, group), layouts.of(param)
    matrices = layouts.matrices(layout, group["view"]) if rule.work.takes_matrices else None
    return Member(name, on_meta(param), None, group, rule, layout, matrices, averages=False, seed_name=seed)


def _fixed_dtypes(member: Member) -> dict[str, torch.dtype]:
    """Return the dtypes of those entries of the state whose dtype does not follow the parameter's."""
    return {
        key: entry.dtype
        for entries in member.entries.values()
        for key, entry in entries.items()
        if isinstance(entry, Entry) and entry.dtype is not None
    }


def _loaded(change: _Change) -> dict[str, Tensor]:
    """Return a parameter's new state. Tensors that lie in another way are moved, by all processes together."""
    state = {}
    for key, like in change.expected.items():
        value = change.saved[key].detach()
        if value.shape != like.shape:
            value = _with_other_columns(value, replace(change.member, param=change.param).new_state()[key])
        value = placed_like(value, like)
        if value.ndim and not change.member.rule.work.takes_matrices:
            value = value.to(like.dtype)  # torch's AdamW takes no other dtype
        # A counter lies where this optimizer keeps it: on the CPU, or with the parameter.
        device = local(change.param).device if value.ndim or like.is_meta else like.device
        state[key] = value.to(device, copy=True)
    return state


def _with_other_columns(value: Tensor, start: Tensor) -> Tensor:
    """Return a saved right factor with as many columns as a new one has.

    Of more columns the first ones stay, and missing ones come from the new factor. The power iteration orthonormalizes
    the first columns first, so over time they belong to the largest singular values.

    Args:
        value: the saved factor (n, saved columns).
        start: the new factor (n, columns), as it is before the first step.
    """
    whole = value.full_tensor() if is_dtensor(value) else value
    columns = min(whole.shape[-1], start.shape[-1])
    whole = pad(whole[..., :columns], (0, start.shape[-1] - columns))
    part = local(start).to(value.dtype)
    part[..., :columns] = local(placed_like(whole, start))[..., :columns]
    return relocated(start, part)
