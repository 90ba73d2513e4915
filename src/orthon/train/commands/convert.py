"""`orthon convert`: states of other packages' optimizers as one for orthon."""

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from orthon.saving.convert import SOURCES, Conversion, ConvertedGroup, convert_states
from orthon.train.errors import UserError
from orthon.train.processes.launch import processes


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Convert states of other packages' optimizers to one that orthon's optimizers load."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IN.pt ...")]
    """Files of torch.save, each with an optimizer's state_dict()."""
    source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")]
    """Whose layout a file has: torch-adamw, torch-muon, keller-muon, moonlight-muon or microsoft-dion; once for all
    files, or once for each, in order."""
    out: Annotated[Path, tyro.conf.arg(metavar="OUT.pt")]
    """File to write, which must not exist."""
    key: Annotated[str | None, tyro.conf.arg(metavar="KEY")] = None
    """Under which the files have the state_dict(), if it is a part of what they hold."""


def run_convert(command: ConvertCommand) -> None:
    """Convert, write, and say what became of each group.

    Raises:
        UserError: The files or the words do not fit, or a state has no counterpart; nothing has been written.
    """
    sources = _sources(command)
    given = [(_read(path, command.key), source) for path, source in zip(command.inputs, sources, strict=True)]
    try:
        conversion = convert_states(given)
    except (TypeError, ValueError) as error:
        raise UserError(_with_paths(str(error), command.inputs)) from error
    _write(command.out, conversion.state_dict)
    _report(conversion, command.inputs, command.out)


def _sources(command: ConvertCommand) -> Sequence[str]:
    """A source for each input, if the command can be carried out."""
    if processes() > 1:
        raise UserError("convert works in one process; call it without torchrun")
    if not command.inputs:
        raise UserError("convert needs one or more files: orthon convert IN.pt --source NAME --out OUT.pt")
    if command.out.exists():
        raise UserError(f"{command.out} exists; choose another --out")
    allowed = ", ".join(SOURCES)
    if unknown := [name for name in command.source if name not in SOURCES]:
        raise UserError(f"source must be one of {allowed} but is {unknown[0]!r}")
    if len(command.source) not in (1, len(command.inputs)):
        raise UserError(
            f"source must be given once, or once for each of {len(command.inputs)} files, but is {len(command.source)} "
            f"times; there are {allowed}"
        )
    return command.source * (1 if len(command.source) > 1 else len(command.inputs))


def _read(path: Path, key: str | None) -> Any:
    """What a file holds, or has under a key; only tensors and plain values are loaded, never code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no file of torch.save with tensors and plain values alone, and loading anything "
            "else could run code; save optimizer.state_dict() by itself"
        ) from error
    except OSError:
        raise
    except Exception as error:  # what is no pickle at all breaks the reader in many ways
        raise UserError(f"{path} is damaged, or no file of torch.save") from error
    if key is None:
        if isinstance(content, Mapping) and not {"state", "param_groups"} <= content.keys():
            raise UserError(
                f"{path} holds no optimizer's state_dict(); choose one of its keys by --key: {_keys(content)}"
            )
        return content
    if not isinstance(content, Mapping) or key not in content:
        raise UserError(f"{path} has no key {key!r}; it has {_keys(content)}")
    return content[key]


def _keys(content: object) -> str:
    """The first keys of a dict, in words."""
    if not isinstance(content, Mapping):
        return f"none, but is a {type(content).__name__}"
    named = ", ".join(map(str, list(content)[:10]))
    return f"{named} and {len(content) - 10} more" if len(content) > 10 else named or "none"


def _with_paths(message: str, inputs: Sequence[Path]) -> str:
    """The message of a refusal, with the name of the file in place of its number."""
    for number, path in enumerate(inputs):
        start = f"state dict {number} "
        if message.startswith(start):
            return f"{path} {message.removeprefix(start)}"
    return message


def _write(out: Path, state_dict: dict[str, Any]) -> None:
    """Write a file, which appears under its name only when it is whole."""
    part = out.with_name(f"{out.name}.part")
    try:
        torch.save(state_dict, part)
        os.replace(part, out)
    except RuntimeError as error:  # torch's word for a directory that is not there
        raise UserError(f"{out} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _report(conversion: Conversion, inputs: Sequence[Path], out: Path) -> None:
    console = Console(highlight=False)
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
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def _options(group: ConvertedGroup) -> str:
    """The options that the source determines, as `name=value`."""
    values = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in group.options.items()}
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))
