"""`orthon convert`: saved states of other packages' optimizers, as one state for orthon."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from rich import box
from rich.table import Table

from orthon.algorithms import RULES
from orthon.saving.convert import SOURCES, Conversion, ConvertedGroup, convert_states
from orthon.saving.files import new_file
from orthon.saving.shown import one_line, shown, unquoted
from orthon.saving.untrusted.errors import DamagedError, RefusedError
from orthon.saving.untrusted.torch_file import read_torch_file
from orthon.step.words import some
from orthon.train.errors import UserError
from orthon.train.processes.launch import processes
from orthon.train.results.console import plain_console
from orthon.train.settings.nearest import did_you_mean
from orthon.train.settings.paths import as_path


def convert(
    *inputs: Annotated[str, Parameter(name="IN.pt", json_list=False)],
    source: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    out: str,
    key: str | None = None,
) -> None:
    """Convert states, write the result, and say what became of each group.

    Args:
        inputs: Files of torch.save, each with an optimizer's state_dict().
        source: Whose layout a file has: torch-adamw, torch-muon, keller-muon, moonlight-muon or microsoft-dion.
            Given once for all files, or once for each file, in order.
        out: File to write. It must not exist.
        key: Key of the state_dict(), if the files hold it in a larger dict.

    Raises:
        UserError: the files or the words do not fit, or a state has no counterpart; nothing has been written.
    """
    if processes() > 1:
        raise UserError("convert works in one process; call it without torchrun")
    if not inputs:
        raise UserError("convert needs one or more files: orthon convert IN.pt --source NAME --out OUT.pt")
    path_out = as_path("out", out)
    if os.path.lexists(path_out):
        raise UserError(f"{path_out} exists; choose another --out")
    paths = [as_path("IN.pt", word) for word in inputs]
    given = [(_read(path, key), name) for path, name in zip(paths, _one_for_each(source, len(paths)), strict=True)]
    try:
        conversion = convert_states(given)
    except Exception as error:  # values of strangers can break comparisons and tensors in many ways
        reason = str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(_with_paths(one_line(reason), paths)) from error
    _write(path_out, conversion.state_dict)
    _report(conversion, paths, path_out)


def _one_for_each(sources: tuple[str, ...], number: int) -> tuple[str, ...]:
    """Return a source for each of a number of files."""
    allowed = ", ".join(SOURCES)
    if unknown := [name for name in sources if name not in SOURCES]:
        raise UserError(
            f"source must be one of {allowed} but is {shown(unknown[0])}{did_you_mean(unknown[0], SOURCES)}"
        )
    if len(sources) not in (1, number):
        raise UserError(
            f"source must be given once, or once for each of {number} files, but is {len(sources)} times; "
            f"there are {allowed}"
        )
    return sources * (1 if len(sources) > 1 else number)


def _read(path: Path, key: str | None) -> Any:
    """Return what a file holds, or the part of it under a key. Only tensors and plain values are loaded, never code."""
    try:
        with path.open("rb") as file:
            content = read_torch_file(file)
    except RefusedError as error:
        if isinstance(error, DamagedError):
            raise UserError(f"{path} is damaged, or no file of torch.save: {error}") from error
        raise UserError(
            f"{path} is refused: it is no file of torch.save with tensors and plain values alone, and loading anything "
            f"else could run code ({error}); save optimizer.state_dict() by itself"
        ) from error
    if key is None:
        if isinstance(content, Mapping) and not {"state", "param_groups"} <= content.keys():
            raise UserError(
                f"{path} holds no optimizer's state_dict(); choose one of its keys by --key: {_keys(content)}"
            )
        return content
    if isinstance(content, Mapping):
        for name in (key, *content):  # 5 also means the number 5, but a name goes first
            if name in content and str(name) == key:
                return content[name]
    raise UserError(f"{path} has no key {shown(key)}; it has {_keys(content)}")


def _keys(content: object) -> str:
    """Return the first keys of a dict, for an error message."""
    if not isinstance(content, Mapping):
        return f"none, but is a {type(content).__name__}"
    return some([*content], most=10, said=partial(unquoted, limit=40)) or "none"


def _with_paths(message: str, inputs: Sequence[Path]) -> str:
    """Return the message of an error, with the name of the file in place of its number."""
    for number, path in enumerate(inputs):
        start = f"state dict {number} "
        if message.startswith(start):
            return f"{path} {message.removeprefix(start)}"
    return message


def _write(out: Path, state_dict: dict[str, Any]) -> None:
    """Write a file. It gets its name only when it is whole."""
    try:
        with new_file(out) as file:
            torch.save(state_dict, file)
    except (OSError, RuntimeError) as error:  # torch's, as on a full disk
        reason = error.strerror if isinstance(error, OSError) else one_line(str(error))
        raise UserError(f"{out} cannot be written: {reason}") from error


def _report(conversion: Conversion, inputs: Sequence[Path], out: Path) -> None:
    console = plain_console()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("group", "algorithm", "parameters", "with state", "from"):
        table.add_column(name, justify="left" if name in ("algorithm", "from") else "right")
    for number, group in enumerate(conversion.groups):
        origin = f"{inputs[group.state_dict]}, group {group.group}"
        table.add_row(str(number), group.algorithm, str(group.parameters), str(group.with_state), origin)
    console.print(table)
    lines = [""]
    for number, group in enumerate(conversion.groups):
        lines.append(f"group {number}: {_options(group)}")
        if group.dropped:
            lines.append(f"group {number}, dropped (no effect, or always so in orthon): {', '.join(group.dropped)}")
    lines += [f"note: {note}" for note in conversion.notes]
    lines.append(f"wrote {out}; load it in an optimizer whose groups have these parameters in this order")
    for number, group in enumerate(conversion.state_dict["param_groups"]):
        if needed := _needed(group):
            lines.append(f"make its group {number}, of {group['algorithm']}, with {_words(needed)}")
    console.print("\n".join(lines), soft_wrap=True)


def _options(group: ConvertedGroup) -> str:
    """Return the options that come from the source, as `name=value`."""
    return _words(
        {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in group.options.items()}
    )


def _needed(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a group must have before it loads this one, as its state would mean something else."""
    options = RULES[group["algorithm"]].options.items()
    return {name: group[name] for name, option in options if option.loaded == "same" and group[name] != option.default}


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={unquoted(value)}" for name, value in sorted(values.items()))
