"""The data of a set: a file with one line of JSON for each run, written as soon as the run has ended."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from experiments.cell import key_of

FOLDER = Path(__file__).resolve().parent / "results"


class DataError(Exception):
    """A file of data has something else in it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The numbers of one run.

    Attributes:
        held_out: step and held-out loss in nats per token, at each measurement; the last one is of the last step.
        diverged: a loss or a gradient was not finite, and the run has no final loss.
        seconds: of the training steps.
        optimizer_share: of these, the part in which the optimizer works.
    """

    held_out: tuple[tuple[int, float], ...]
    diverged: bool
    seconds: float
    optimizer_share: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in the data.

    Attributes:
        settings: of the run, all that its numbers depend on.
        outcome: its numbers.
        corpus: the fingerprint of the text.
        where: machine, versions, commit and date.
    """

    settings: Mapping[str, Any]
    outcome: Outcome
    corpus: str
    where: Mapping[str, Any]

    @property
    def loss(self) -> float:
        """The held-out loss after the last step, in nats per token; infinity for a run that diverged."""
        return math.inf if self.outcome.diverged else self.outcome.held_out[-1][1]

    @property
    def processor(self) -> str:
        """What the run ran on, for people: a GPU by its name, or a CPU."""
        machine = self.where["machine"]
        return machine.get("gpu") or f"a CPU ({machine['processor']})"


# Lines by the key of their settings.
Found: TypeAlias = Mapping[str, Line]


def read(path: Path) -> list[Line]:
    """Return the lines of a file; none if there is no file. A last line that was cut off is left out.

    Raises:
        DataError: a line is no run.
    """
    if not path.exists():
        return []
    *whole, last = path.read_text(encoding="utf-8").split("\n")
    if _is_whole(last):
        whole.append(last)
    return [_parsed(text, f"{path}, line {number}") for number, text in enumerate(whole, 1) if text]


def append(path: Path, line: Line) -> None:
    """Write a line at the end of a file. What a killed run has left of a line there goes before."""
    _end_last_line(path)
    loss = None if line.outcome.diverged else line.loss
    content = {"settings": line.settings, "loss": loss, **asdict(line.outcome), "corpus": line.corpus, **line.where}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


def by_key(lines: Iterable[Line], corpus: str | None = None) -> dict[str, Line]:
    """Return lines by the key of their settings.

    Args:
        lines: to look through.
        corpus: only those with this text; None: all.
    """
    return {key_of(line.settings): line for line in lines if corpus in (None, line.corpus)}


def _parsed(text: str, place: str) -> Line:
    try:
        content = json.loads(text)
        outcome = Outcome(
            held_out=tuple((int(step), float(loss)) for step, loss in content.pop("held_out")),
            diverged=content.pop("diverged"),
            seconds=content.pop("seconds"),
            optimizer_share=content.pop("optimizer_share"),
        )
        del content["loss"]
        return Line(settings=content.pop("settings"), outcome=outcome, corpus=content.pop("corpus"), where=content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place} is no run: {error!r}; delete the line, or mend it") from error


def _is_whole(line: str) -> bool:
    """Return whether a line that has no end is a run. An editor may have left out the end."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _end_last_line(path: Path) -> None:
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        start = content.rfind(b"\n") + 1
        with path.open("r+b") as file:
            if _is_whole(content[start:].decode(errors="replace")):
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(start)
