"""The data of one set during a sitting: what is known, and how runs are added."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.results import surroundings

from experiments.cell import Cell
from experiments.results import FOLDER, Line, Outcome, append, by_key, read


class Book:
    """The data of one set.

    Args:
        name: of the file, without its ending.
        folder: of the data of all sets.
        corpus: the fingerprint of the text. Runs with another text are not comparable and count as missing.
        where: machine, versions, commit and date, which each new line gets.
    """

    def __init__(self, name: str, *, folder: Path, corpus: str, where: Mapping[str, Any]) -> None:
        self.path, self._corpus, self._where = folder / f"{name}.jsonl", corpus, where
        self.found = by_key(read(self.path), corpus)
        others = sorted(path for path in folder.glob("*.jsonl") if path != self.path)
        self.elsewhere = by_key((line for path in others for line in read(path)), corpus)

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Keep a run that has ended."""
        self._keep(Line(settings=cell.settings, outcome=outcome, corpus=self._corpus, where=self._where))

    def take_over(self, cell: Cell) -> bool:
        """Copy the line of a run from the data of another set, as it is there. Return whether there is one."""
        line = self.elsewhere.get(cell.key)
        if line is not None:
            self._keep(line)
        return line is not None

    def _keep(self, line: Line) -> None:
        append(self.path, line)
        self.found |= by_key([line])


def whereabouts(device: str) -> dict[str, Any]:
    """Return machine, versions, commit and date. The data themselves do not make the commit dirty."""
    found = surroundings(torch.device(device))
    found["machine"]["threads"] = 1  # of each run
    clean = str(found["commit"]).removesuffix("-dirty")
    changed = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", f":(exclude){FOLDER}"]
    try:
        done = subprocess.run(changed, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return found
    return found | {"commit": f"{clean}-dirty" if done.stdout.strip() else clean}
