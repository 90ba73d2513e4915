"""The state of one parameter of another package → its state for orthon."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms import RULES
from orthon.algorithms.state import Counter
from orthon.saving.convert.formats import Format
from orthon.saving.shown import kind_of, listed, shown
from orthon.sharding import is_dtensor
from orthon.sharding.matrix_view import MatrixView, Reading


def converted_state(
    format: Format, options: Mapping[str, Any], given: Mapping[str, Any], where: str
) -> dict[str, Tensor]:
    """Return the state of a parameter, under orthon's names.

    Args:
        format: in which it is given.
        options: of orthon, for the parameter's group.
        given: the state, under the package's names.
        where: names the parameter; starts the messages of errors.

    Raises:
        ValueError: for entries that are missing, unknown, or not as they should be.
    """
    if given.keys() - format.entries.keys():
        raise ValueError(f"{where}: entries should be of {listed(format.entries)}, but are {listed(given)}")
    theirs = {ours: key for key, ours in format.entries.items() if key in given}
    if "momentum" not in theirs and "exp_avg" not in theirs:
        raise ValueError(f"{where}: has no momentum; its entries are {listed(given)}")
    like = given[theirs["momentum" if "momentum" in theirs else "exp_avg"]]
    shape = tuple(getattr(like, "shape", ()))
    rule = RULES[format.algorithm]
    reading = _reading(options, shape, where) if rule.work.takes_matrices else None
    entries = rule.keeps(shape if reading is None else reading.matrix(0), options)
    if theirs.keys() != entries.keys():
        needed = [key for key, ours in format.entries.items() if ours in entries]
        raise ValueError(f"{where}: entries should be {listed(needed)} by its group, but are {listed(given)}")
    state = {}
    for name, entry in entries.items():
        key, value = theirs[name], given[theirs[name]]
        what = f"{where}: {shown(key)}"
        if isinstance(entry, Counter):
            state[name] = _counter(value, what)
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{what}: should be a floating-point tensor, but is a {kind_of(value)}")
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


def _reading(options: Mapping[str, Any], shape: tuple[int, ...], where: str) -> Reading:
    """Return how a parameter of this shape is read as matrices."""
    if options["view"] is None and len(shape) != 2:
        raise ValueError(
            f"{where}: should be a matrix, but its momentum has shape {shape}; take its state out of the file, so that "
            "it starts anew, with a view=MatrixView(...) or in another algorithm's group"
        )
    try:
        return MatrixView.of(options["view"] or {}).read(shape)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _counter(value: object, where: str) -> Tensor:
    """Return a number of steps as torch's AdamW keeps it."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not 0 <= number < 2**53
        or number != int(number)
    ):
        raise ValueError(f"{where}: should be a number of steps, but is {shown(value)}")
    return torch.tensor(float(number), dtype=torch.float32, device="cpu")
