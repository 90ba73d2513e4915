"""One state for orthon from those of other optimizers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms import RULES
from orthon.algorithms.options import SCHEDULER_KEYS
from orthon.algorithms.state import Counter
from orthon.saving.convert.layouts import Layout, Part, Source
from orthon.saving.convert.sources import SOURCES
from orthon.sharding import is_dtensor
from orthon.sharding.matrix_view import MatrixView, Reading
from orthon.step.names import plain_name

__all__ = ["SOURCES", "Conversion", "ConvertedGroup", "convert_state", "convert_states"]

# Of a group, what orthon's optimizers keep beside options.
_KEPT = {"param_names", "name", *SCHEDULER_KEYS}


@dataclass(frozen=True)
class ConvertedGroup:
    """What became of a group of parameters, for a reader.

    Attributes:
        state_dict: the position of the state dict from which it comes.
        group: its position there.
        algorithm: that updates it now.
        parameters: how many it has.
        with_state: how many of them have a state; the others start anew.
        options: those that the source determines, by orthon's names.
        dropped: keys of the source without effect on the update, or with a value that says what orthon always does.
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
    """A state for orthon, and how it came about.

    Attributes:
        state_dict: for `load_state_dict` of an optimizer of orthon. Its tensors are those of the sources where the
            dtype is right.
        groups: of the state dict, in order.
        notes: where the two agree up to something, or something is not in the sources.
    """

    state_dict: dict[str, Any]
    groups: tuple[ConvertedGroup, ...]
    notes: tuple[str, ...]


def convert_state(state_dict: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return the state of another package's optimizer as one that orthon's optimizers load.

    It has the momentum, moments, number of steps, learning rates and options of the source, under orthon's names, and
    nothing is left out that changes an update. See `convert_states`, which also tells what became of each group.

    Args:
        state_dict: as the optimizer's `state_dict()` returns it, with whole tensors.
        source: the package whose layout it has, a key of `orthon.saving.convert.SOURCES`.

    Raises:
        ValueError: for what orthon has no counterpart of; it names the group or parameter, the entry and the reason.
        TypeError: for an option of a type that orthon does not take.
    """
    return convert_states([(state_dict, source)]).state_dict


def convert_states(given: Iterable[tuple[Mapping[str, Any], str]]) -> Conversion:
    """Combine states of other packages' optimizers to one that orthon's optimizers load.

    The groups come in the order in which they are given. A group becomes two where orthon needs that: Moonlight's,
    with Muon and AdamW in one, Keller Jordan's, with matrices and convolutions, and Dion's, with matrices of which
    sharding chose different sides. Parameters keep their order within a group, and their names where the source has
    them.

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
            if twice := names.intersection(plain_names := [plain_name(n) for n in named]):
                raise ValueError(f"{of_group}: parameter {min(twice)!r} is in another group, too")
            names.update(plain_names)
            labels = [f"parameter {label!r}" for label in named or ids]
            for part in _parts(source, group, [state_dict["state"].get(i, {}) for i in ids], of_group):
                layout = source.layouts[part.layout]
                options, known, dropped = _options(layout, part, of_group)
                params = range(count, count := count + len(part.states))
                for param, (position, entries) in zip(params, part.states.items(), strict=True):
                    if entries:
                        state[param] = _state(layout, options, entries, f"{of_group}: {labels[position]}")
                kept = {key: value for key, value in part.group.items() if key in _KEPT}
                if named:
                    kept["param_names"] = [named[position] for position in part.states]
                groups.append({**kept, "algorithm": layout.algorithm, **options, "params": list(params)})
                with_state = sum(map(bool, part.states.values()))
                reports.append(
                    ConvertedGroup(number, index, layout.algorithm, len(params), with_state, known, tuple(dropped))
                )
                notes.update(dict.fromkeys((*layout.notes, *part.notes)))
    return Conversion({"state": state, "param_groups": groups}, tuple(reports), tuple(notes))


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"source should be one of {', '.join(map(repr, SOURCES))}, but is {name!r}")
    return SOURCES[name]


def _check_form(state_dict: object, where: str) -> None:
    """Raise a ValueError unless this is what an optimizer's state_dict() returns."""
    if not (isinstance(state_dict, Mapping) and {"state", "param_groups"} <= state_dict.keys()):
        found = f"a dict with {_listed(state_dict)}" if isinstance(state_dict, Mapping) else f"a {_type(state_dict)}"
        raise ValueError(
            f"{where}: should be an optimizer's state_dict(), with 'state' and 'param_groups', but is {found}"
        )
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Mapping) for value in state.values()):
        raise ValueError(f"{where}: 'state' should be a dict of a dict for each parameter, but is a {_type(state)}")
    if not isinstance(groups, list) or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups
    ):
        raise ValueError(f"{where}: 'param_groups' should be a list of dicts, each with a list 'params'")
    ids = {i for group in groups for i in group["params"]}
    if strangers := [key for key in state if key not in ids]:
        raise ValueError(f"{where}: has a state of parameter {strangers[0]!r}, which is in no group")


def _members(group: Mapping[str, Any], where: str) -> tuple[list[Any], list[str]]:
    """Return the ids of a group's parameters and their names, none if the source has none."""
    ids = list(group["params"])
    # State dicts of torch.distributed.checkpoint have names in place of numbers.
    names = list(group.get("param_names", ids if all(isinstance(i, str) for i in ids) else ()))
    if names and len(names) != len(ids):
        raise ValueError(f"{where}: 'param_names' should name {len(ids)} parameters, but has {len(names)}")
    return ids, names


def _parts(source: Source, group: Mapping[str, Any], states: list[Mapping[str, Any]], where: str) -> list[Part]:
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    try:
        return source.parts(options, states)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _options(layout: Layout, part: Part, where: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return all options of orthon for a group, those of them that the source determines, and keys without effect."""
    known, dropped = {**layout.options, **part.options}, []
    for key, value in part.group.items():
        if key in _KEPT:
            continue
        if key not in layout.keys:
            raise ValueError(
                f"{where}: {key!r} is {value!r}, and orthon does not know what it means for {part.layout!r} (known: "
                f"{_listed(sorted(layout.keys))}); take it out of the group if it does not change updates"
            )
        meaning = layout.keys[key]
        if isinstance(value, Tensor) and value.numel() == 1 and meaning.option != "lr":  # as CUDA graphs want it
            value = value.item()
        read = meaning.read(value, f"{where}: {key!r}")
        if meaning.option is None:
            dropped.append(key)
        else:
            known[meaning.option] = read
    if missing := [key for key, meaning in layout.keys.items() if meaning.required and key not in part.group]:
        raise ValueError(f"{where}: {missing[0]!r} is missing, which {part.layout!r} has")
    rule = RULES[layout.algorithm]
    options = {name: known.get(name, option.default) for name, option in rule.options.items()}
    for name, option in rule.options.items():
        option.check(name, options[name], where)
    return options, known, dropped


def _state(layout: Layout, options: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return the state of a parameter."""
    if given.keys() - layout.entries.keys():
        raise ValueError(f"{where}: entries should be of {_listed(layout.entries)}, but are {_listed(given)}")
    theirs = {ours: key for key, ours in layout.entries.items() if key in given}
    if "momentum" not in theirs and "exp_avg" not in theirs:
        raise ValueError(f"{where}: has no momentum; its entries are {_listed(given)}")
    like = given[theirs["momentum" if "momentum" in theirs else "exp_avg"]]
    shape = tuple(getattr(like, "shape", ()))
    rule = RULES[layout.algorithm]
    reading = _reading(layout, options, shape, where) if rule.work.takes_matrices else None
    entries = rule.entries(shape if reading is None else reading.matrix(0), options)
    if theirs.keys() != entries.keys():
        needed = [key for key, ours in layout.entries.items() if ours in entries]
        raise ValueError(f"{where}: entries should be {_listed(needed)} by its group, but are {_listed(given)}")
    state = {}
    for name, entry in entries.items():
        key, value = theirs[name], given[theirs[name]]
        what = f"{where}: {key!r}"
        if isinstance(entry, Counter):
            state[name] = _counter(value, what)
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{what}: should be a floating-point tensor, but is a {_type(value)}")
        if is_dtensor(value):
            raise ValueError(f"{what}: should be a whole tensor, but is a DTensor; save a state with whole ones")
        expected = shape
        if entry.side is not None and reading is not None:
            dims = (*reading.batch, *reading.sides[entry.side])
            expected = (*(shape[dim] for dim in dims), entry.width)
        if value.shape != expected:
            raise ValueError(f"{what}: should have shape {expected} by its group, but has {tuple(value.shape)}")
        state[name] = value.to(entry.dtype or value.dtype)
    return state


def _reading(layout: Layout, options: Mapping[str, Any], shape: tuple[int, ...], where: str) -> Reading:
    """Return how a parameter is read as matrices."""
    if options["view"] is None and len(shape) != 2:
        raise ValueError(
            f"{where}: should be a matrix, but its momentum has shape {shape}; take its state out of the file, so that "
            "it starts anew, with a view=MatrixView(...) or in another algorithm's group"
        )
    try:
        reading = MatrixView.of(options["view"] or {}).read(shape)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for block in range(len(reading.blocks)):
        if reason := layout.refuses(reading.matrix(block)):
            raise ValueError(f"{where}: {reason}; take its state out of the file, so that it starts anew")
    return reading


def _counter(value: object, where: str) -> Tensor:
    """Return a number of steps as torch's AdamW keeps it."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number < 0 or number != int(number):
        raise ValueError(f"{where}: should be a number of steps, but is {value!r}")
    return torch.tensor(float(number))


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(map(repr, keys)) or "nothing"


def _type(value: object) -> str:
    return type(value).__name__
