"""A machine as plain values, such as a file holds, and back."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any

from orthon.machines.machine import Link, Machine


def plain_values(machine: Machine) -> dict[str, Any]:
    """Return the figures of a machine by name, each link as a dictionary of its own, in the order of `Machine`."""
    return asdict(machine)


def machine_from(mapping: Mapping[str, Any], where: str) -> Machine:
    """Return the machine of which `plain_values` gives these values.

    Args:
        mapping: every figure of `Machine` by its name. A link is a mapping with `bandwidth` and `latency`. One without
            `device`, as older versions wrote it, is of CPUs where its name is "cpu", and otherwise of GPUs.
        where: they come from, such as the path of a file; starts the message of an error.

    Raises:
        ValueError: if a figure is missing, unknown, or not what it should be; in one line.
    """
    if isinstance(mapping, Mapping):
        mapping = {"device": "cpu" if mapping.get("name") == "cpu" else "cuda", **mapping}
    values = dict(_checked(mapping, Machine, where, "a machine"))
    for name in ("within_node", "between_nodes"):
        link = _checked(values[name], Link, f"{where}: {name}", "a link")
        values[name] = _made(Link, link, f"{where}: {name}")
    machine: Machine = _made(Machine, values, where)
    return machine


def _checked(mapping: object, kind: type[Any], where: str, what: str) -> Mapping[str, Any]:
    names = [field.name for field in fields(kind)]
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where}: should have the values of {what}, {', '.join(names)}, but is {mapping!r}")
    for name in mapping:
        if name not in names:
            close = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"{what} has {', '.join(names)}"
            raise ValueError(f"{where}: unknown value {name!r}; {hint}")
    missing = [name for name in names if name not in mapping]
    if missing:
        raise ValueError(f"{where}: should say {', '.join(missing)} of {what}, but does not")
    return mapping


def _made(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Return a value of the kind. YAML reads numbers such as 1e9, without a dot or a sign, as text."""
    numbers = {}
    for name, value in values.items():
        try:
            numbers[name] = float(value) if isinstance(value, str) and name not in ("name", "device") else value
        except ValueError:
            numbers[name] = value
    try:
        return kind(**numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {str(error).removeprefix(f'{kind.__name__}: ')}") from None
