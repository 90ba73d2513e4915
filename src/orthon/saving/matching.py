"""Which saved parameter is which of the optimizer's, by their names or by their positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orthon.saving.shown import kind_of
from orthon.step.names import parameter_names, plain_name, plain_names, seed_names
from orthon.step.words import some


@dataclass(frozen=True)
class Saved:
    """What a state dict has of one parameter.

    Attributes:
        name: the parameter's name, or its position, for errors.
        group: its param group.
        state: its state; empty if it has none.
        given_name: the name that it was saved with; None if it had none.
        seed: from what its random numbers followed.
    """

    name: str
    group: Mapping[str, Any]
    state: Mapping[str, Any]
    given_name: str | None
    seed: str


def match(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], where: str) -> list[list[Saved]]:
    """Return for each parameter of each group what was saved of it.

    Names decide if both sides have them, otherwise positions.

    Args:
        state_dict: as an optimizer's `state_dict()` returned it.
        groups: the param groups of the optimizer that loads it.
        where: starts the messages of errors.

    Raises:
        TypeError, ValueError: if this is no state dict, or one of other parameters.
    """
    _check_structure(state_dict, where)
    saved, state = state_dict["param_groups"], state_dict["state"]
    names = _names(saved)
    if names is not None and all("param_names" in group for group in groups if group["params"]):
        places = {
            name: Saved(name, group, _entries(state, key), name, seed)
            for index, (group, of_group) in enumerate(zip(saved, names, strict=True))
            for name, seed, key in zip(of_group, seed_names(group, index), group["params"], strict=True)
        }
        own = parameter_names(groups)
        here = {name for of_group in own for name in of_group}
        if here != places.keys():
            missing, unknown = sorted(here - places.keys()), sorted(places.keys() - here)
            raise ValueError(
                f"{where}: it should have the parameters of this optimizer, but lacks {some(missing) or 'none'} and "
                f"has {some(unknown) or 'none'}"
            )
        return [[places[name] for name in of_group] for of_group in own]
    sizes, expected = [len(group["params"]) for group in saved], [len(group["params"]) for group in groups]
    if sizes != expected:
        way_out = (
            "; groups of other sizes are matched by names, which both sides must have: give model.named_parameters() "
            "to this optimizer, or make it by for_model; where the state has no names, load it into an optimizer that "
            "has names and the groups of the state, and take the state_dict() of that one"
        )
        raise ValueError(
            f"{where}: its param groups should have {expected} parameters, but have {sizes}"
            f"{way_out if sum(sizes) == sum(expected) else ''}"
        )
    result = []
    for index, group in enumerate(saved):
        given = _given_names(group, named=names is not None)
        seeds = seed_names(group, index) if given is None or "seed_names" in group else list(map(plain_name, given))
        named: Sequence[str | None] = given or [None] * len(group["params"])
        if len(seeds) != len(named):  # of a group that was another one
            seeds = seed_names({"params": group["params"]}, index)
        result.append(
            [
                Saved(str(key), group, _entries(state, key), name, seed)
                for key, name, seed in zip(group["params"], named, seeds, strict=True)
            ]
        )
    return result


def _given_names(group: Mapping[str, Any], *, named: bool) -> list[str] | None:
    """Return the names with which the parameters of a group were saved, if they are known.

    Args:
        group: as it was saved.
        named: whether the names of all groups are in the order of their parameters.
    """
    if named:
        return list(group["param_names"])
    # What torch.distributed.checkpoint hands over has names for keys. They are the parameters' if these had names.
    keys, names = group["params"], group.get("param_names")
    if isinstance(names, list | tuple) and keys and all(isinstance(key, str) for key in keys):
        known = {plain_name(str(name)) for name in names}
        if all(plain_name(key) in known for key in keys):
            return list(keys)
    return None


def _entries(state: Mapping[Any, Any], key: object) -> Mapping[str, Any]:
    """Return what was saved of a parameter. Torch hands over empty dicts where a checkpoint has nothing."""
    entries: Mapping[str, Any] = state.get(key, {})
    return {} if all(isinstance(value, Mapping) and not value for value in entries.values()) else entries


def saved_of_empty(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], index: int) -> list[Saved]:
    """Return what was saved of a group without parameters: of that in its place, if it had none either.

    Args:
        state_dict: as for `match`, which has checked it.
        groups: the param groups of the optimizer that loads it.
        index: the position of the group.
    """
    saved = state_dict["param_groups"]
    # Torch drops the options of such groups where it hands over what torch.distributed.checkpoint has read.
    alike = len(saved) == len(groups) and not saved[index]["params"] and "algorithm" in saved[index]
    return [Saved(f"param_groups[{index}]", saved[index], {}, None, "")] if alike else []


def _check_structure(state_dict: Mapping[str, Any], where: str) -> None:
    """Raise an error unless this is a state dict of the form that torch's optimizers return."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(f"{where}: should be a dict with 'state' and 'param_groups', but is {kind_of(state_dict)}")
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list | tuple):
        raise TypeError(f"{where}: 'param_groups' should be a list, but is {kind_of(groups)}")
    for index, group in enumerate(groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list | tuple):
            raise TypeError(f"{where}: param_groups[{index}] should be a dict with a list 'params'")
    if not isinstance(state, Mapping):
        raise TypeError(f"{where}: 'state' should be a dict, but is {kind_of(state)}")
    keys = [key for group in groups for key in group["params"]]
    known = set(keys)
    if len(known) < len(keys):
        raise ValueError(f"{where}: 'param_groups' should have every parameter once, but are {keys}")
    for key, entries in state.items():
        if key not in known:
            raise ValueError(f"{where}: 'state' has {key!r}, which is in none of its param groups")
        if not isinstance(entries, Mapping):
            raise TypeError(f"{where}: state[{key!r}] should be a dict, but is {kind_of(entries)}")


def _names(saved: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """Return the names of the saved parameters; None if positions are to be used instead.

    Positions are used if there are no names, or if they are not unique. They are also used for what
    torch.distributed.checkpoint hands over: its keys are names, in the order of this optimizer's parameters, while
    "param_names" are those of the groups as they were saved.
    """
    result = []
    for group in saved:
        names = group.get("param_names") if group["params"] else []
        if not isinstance(names, list | tuple) or any(isinstance(key, str) for key in group["params"]):
            return None
        result.append([str(name) for name in names])
        if len(names) != len(group["params"]):
            return None
    every = [name for names in result for name in names]
    if len(set(every)) < len(every):
        return None
    plain = iter(plain_names(every))
    return [[next(plain) for _ in names] for names in result]
