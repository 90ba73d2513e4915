"""What has been measured: kept as data, on the disk after every case."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import orthon
from benchmarks.contenders import TORCH


@dataclass(frozen=True)
class Row:
    """An optimizer on a case.

    Attributes:
        case: its name.
        contender: its name.
        dtype: of weights, gradients and state.
        matrices: how many there are.
        seconds: of a step, the median; None if it was not measured.
        first_seconds: of the first step, which makes the state.
        quartiles: of the seconds, the first and the third.
        repeats: how many steps the median is of.
        ratios: of the seconds to those of others, by name, each measured side by side.
        roofline_seconds: the least that this machine would take.
        error: of a step, relative to float64; None if it was not checked.
        state_bytes: kept between steps.
        peak_bytes: allocated beside weights, gradients and state at once in a step; None on a CPU.
        note: why something is missing.
    """

    case: str
    contender: str
    dtype: str
    matrices: int
    seconds: float | None = None
    first_seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    repeats: int = 0
    ratios: dict[str, float] = field(default_factory=dict)
    roofline_seconds: float | None = None
    error: float | None = None
    state_bytes: int | None = None
    peak_bytes: int | None = None
    note: str = ""

    @property
    def of_roofline(self) -> float | None:
        """Share of the best that the machine could do."""
        return None if not self.seconds or self.roofline_seconds is None else self.roofline_seconds / self.seconds


class Results:
    """Rows and other tables of one run.

    Args:
        name: of the file, without its ending.
        folder: where it goes.
        arguments: of the run.
        device: on which it runs.
    """

    def __init__(self, name: str, *, folder: Path, arguments: Mapping[str, Any], device: torch.device) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.json"
        self.rows: list[Row] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self._head = {"name": name, **surroundings(device), "arguments": dict(arguments)}
        self.roofline: dict[str, float] = {}
        self.targets: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        self.save()

    def note(self, table: str, **values: Any) -> None:
        """Keep a line of another table."""
        self.tables.setdefault(table, []).append(values)
        self.save()

    def find(self, case: str, contender: str, dtype: str) -> Row | None:
        """Return the row of that name that was measured, or None."""
        found = (r for r in self.rows if (r.case, r.contender, r.dtype) == (case, contender, dtype))
        return next((row for row in found if row.seconds is not None), None)

    def baselines(self, case: str, dtype: torch.dtype) -> dict[str, Row]:
        """Return the rows of torch's optimizers on a case, by name, as far as they were measured."""
        rows = {contender.name: self.find(case, contender.name, name_of(dtype)) for contender in TORCH}
        return {name: row for name, row in rows.items() if row is not None}

    def save(self) -> None:
        """Write everything so far, so that the file is whole at any time."""
        data = {
            **self._head,
            "roofline": self.roofline,
            "targets": self.targets,
            "rows": [asdict(row) for row in self.rows],
            "tables": self.tables,
        }
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        os.replace(part, self.path)


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype's name as results have it."""
    return str(dtype).removeprefix("torch.")


def reason(error: BaseException) -> str:
    """Return what is told of an error: its type and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def folder_for_results(given: Path | None) -> Path:
    """Return the folder that was asked for: by --out, by the variable OUT, or benchmarks/results."""
    return given or Path(os.environ.get("OUT") or Path(__file__).parent / "results")


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return date, commit, machine and versions, which tell what numbers on a device are worth."""
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "orthon": orthon.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
        versions["cuda"] = str(torch.version.cuda)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": now, "commit": _commit(), "device": device.type, "machine": machine, "versions": versions}


def _processor() -> str:
    """Return the processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """Return the commit of this checkout, with "-dirty" for changed files, or "unknown" outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
