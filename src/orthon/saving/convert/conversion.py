"""States of other optimizers → one state for orthon, with a report of what became of each group."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orthon.algorithms import RULES
from orthon.algorithms.options import SCHEDULER_KEYS
from orthon.saving.convert.entries import converted_state
from orthon.saving.convert.formats import Format, NewGroup, Source
from orthon.saving.convert.sources import SOURCES
from orthon.saving.shown import kind_of, listed, shown
from orthon.saving.untrusted.bounded import check_bounded
from orthon.step.names import plain_names

__all__ = ["SOURCES", "Conversion", "ConvertedGroup", "convert_state", "convert_states"]

# What orthon's optimizers keep in a param group beside options.
_KEPT = {"param_names", "name", *SCHEDULER_KEYS}
MOST = 10_000  # values in one option; a view of many blocks has hundreds


@dataclass(frozen=True)
class ConvertedGroup:
    """A report of one converted param group, for a reader.

    Attributes:
        state_dict: the position of the state dict from which it comes.
        group: the position of its param group there.
        algorithm: the algorithm that updates it now.
        parameters: the number of its parameters.
        with_state: the number of those that have a state. The others start anew.
        options: the options that the source determines, by orthon's names.
        dropped: keys of the source that do not change the update, or whose value orthon always has.
    """

    state_dict: int
    group: int
    algorithm: str
    parameters: int
    with_state: int
    options: Mapping[str, Any]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """A state for orthon, and a report of how it was made.

    Attributes:
        state_dict: for `load_state_dict` of one of orthon's optimizers. It shares tensors with the sources where these
            have the right dtype.
        groups: a report for each param group of `state_dict`, in order.
        notes: in what the new optimizer differs from the old one, and what was assumed as the sources do not tell it.
    """

    state_dict: dict[str, Any]
    groups: tuple[ConvertedGroup, ...]
    notes: tuple[str, ...]


def convert_state(state_dict: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return the state of another package's optimizer as one that orthon's optimizers load.

    It has the momentum, moments, number of steps, learning rates and options of the source, under orthon's names.
    Nothing that changes an update is left out. `convert_states` also reports what became of each group.

    Args:
        state_dict: as the optimizer's `state_dict()` returns it, with whole tensors.
        source: the package that made it, a key of `orthon.saving.convert.SOURCES`.

    Raises:
        ValueError: for what orthon has no counterpart of; it names the group or parameter, the entry and the reason.
        TypeError: for an option of a type that orthon does not take.
    """
    return convert_states([(state_dict, source)]).state_dict


def convert_states(given: Iterable[tuple[Mapping[str, Any], str]]) -> Conversion:
    """Combine states of other packages' optimizers to one that orthon's optimizers load.

    Groups keep their order. A group becomes two where orthon needs that: a group of Moonlight with parameters for Muon
    and for AdamW, a group of Keller Jordan's with matrices and convolutions, and a group of Dion with matrices for
    which sharding chose different sides. Parameters keep their order within a group, and their names if the source has
    names.

    Args:
        given: pairs of a state dict and its source, as for `convert_state`.

    Raises:
        ValueError: for what orthon has no counterpart of; it names the group or parameter, the entry and the reason.
        TypeError: for an option of a type that orthon does not take.
    """
    state: dict[int, dict[str, Tensor]] = {}
    groups: list[dict[str, Any]] = []
    reports: list[ConvertedGroup] = []
    notes: dict[str, None] = {}
    names: set[str] = set()
    count = 0
    for number, (state_dict, name) in enumerate(given):
        source = _source(name)
        where = f"state dict {number} ({name})"
        _check_form(state_dict, where)
        for index, group in enumerate(state_dict["param_groups"]):
            of_group = f"{where}: param group {index}"
            ids, named = _members(group, of_group)
            if twice := names.intersection(plain := plain_names(named)):
                raise ValueError(f"{of_group}: parameter {shown(min(twice))} is in another group, too")
            names.update(plain)
            labels = [f"parameter {shown(label)}" for label in named or ids]
            for new in _split(source, group, [state_dict["state"].get(i, {}) for i in ids], of_group):
                format = source.formats[new.format]
                options, known, dropped = _options(format, new, of_group)
                params = range(count, count := count + len(new.states))
                for param, (position, entries) in zip(params, new.states.items(), strict=True):
                    if entries:
                        state[param] = converted_state(format, options, entries, f"{of_group}: {labels[position]}")
                kept = {key: value for key, value in new.group.items() if key in _KEPT}
                if named:
                    kept["param_names"] = [named[position] for position in new.states]
                groups.append({**kept, "algorithm": format.algorithm, **options, "params": list(params)})
                with_state = sum(map(bool, new.states.values()))
                reports.append(
                    ConvertedGroup(number, index, format.algorithm, len(params), with_state, known, tuple(dropped))
                )
                notes.update(dict.fromkeys((*format.notes, *new.notes)))
    return Conversion({"state": state, "param_groups": groups}, tuple(reports), tuple(notes))


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"source should be one of {', '.join(map(repr, SOURCES))}, but is {shown(name)}")
    return SOURCES[name]


def _check_form(state_dict: object, where: str) -> None:
    """Raise a ValueError unless this is what an optimizer's state_dict() returns."""
    try:
        check_bounded(state_dict)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not (isinstance(state_dict, Mapping) and {"state", "param_groups"} <= state_dict.keys()):
        found = f"a dict with {listed(state_dict)}" if isinstance(state_dict, Mapping) else f"a {kind_of(state_dict)}"
        raise ValueError(
            f"{where}: should be an optimizer's state_dict(), with 'state' and 'param_groups', but is {found}"
        )
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Mapping) for value in state.values()):
        raise ValueError(f"{where}: 'state' should be a dict of a dict for each parameter, but is a {kind_of(state)}")
    if not isinstance(groups, list) or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups
    ):
        raise ValueError(f"{where}: 'param_groups' should be a list of dicts, each with a list 'params'")
    ids = {i for group in groups for i in group["params"]}
    if strangers := [key for key in state if key not in ids]:
        raise ValueError(f"{where}: has a state of parameter {shown(strangers[0])}, which is in no group")


def _members(group: Mapping[str, Any], where: str) -> tuple[list[Any], list[str]]:
    """Return the ids of a group's parameters, and their names; no names if the source has none."""
    ids = list(group["params"])
    # State dicts of torch.distributed.checkpoint have names in place of numbers.
    names = list(group.get("param_names", ids if all(isinstance(i, str) for i in ids) else ()))
    if names and len(names) != len(ids):
        raise ValueError(f"{where}: 'param_names' should name {len(ids)} parameters, but has {len(names)}")
    return ids, names


def _split(source: Source, group: Mapping[str, Any], states: list[Mapping[str, Any]], where: str) -> list[NewGroup]:
    """Return the groups that a param group becomes."""
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    try:
        return source.split(options, states)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _options(format: Format, new: NewGroup, where: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return all options of a new group, those of them that the source determines, and keys without effect."""
    known, dropped = {**format.options, **new.options}, []
    for key, value in new.group.items():
        if key in _KEPT:
            continue
        if key not in format.keys:
            raise ValueError(
                f"{where}: {shown(key)} is {shown(value)}, and orthon does not know what it means for "
                f"{new.format!r} (known: {listed(sorted(format.keys))}); take it out of the group "
                "if it does not change updates"
            )
        try:
            check_bounded(value, nodes=MOST)
        except ValueError as error:
            raise ValueError(f"{where}: {shown(key)}: {error}") from error
        meaning = format.keys[key]
        if isinstance(value, Tensor) and value.numel() == 1 and meaning.option != "lr":  # as CUDA graphs want it
            value = value.item()
        read = meaning.read(value, f"{where}: {shown(key)}")
        if meaning.option is None:
            dropped.append(key)
        else:
            known[meaning.option] = read
    if missing := [key for key, meaning in format.keys.items() if meaning.required and key not in new.group]:
        raise ValueError(f"{where}: {missing[0]!r} is missing, which {new.format!r} has")
    rule = RULES[format.algorithm]
    options = {
        name: option.check(name, known.get(name, option.default), where) for name, option in rule.options.items()
    }
    return options, known, dropped
