"""The notebook in examples/: it has its pictures, and runs."""

import json
import re
import sys
from typing import Any

import pytest

from tests.support.examples import FOLDER
from tests.support.notebook import code_cells, executed, pictures

NOTEBOOK = FOLDER / "dion_in_pictures.ipynb"
MOST_BYTES = 1_000_000
PICTURES = 6


def kept() -> dict[str, Any]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def printed(notebook: dict[str, Any]) -> list[str]:
    """Return what the cells have printed, one after the other."""
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return ["".join(output["text"]) for output in outputs if output["output_type"] == "stream"]


def assert_complete(notebook: dict[str, Any]) -> None:
    found = pictures(notebook)
    assert len(found) == PICTURES
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in found)
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", printed(notebook)[0])]
    assert losses[-1] < losses[0] / 2


def test_it_is_kept_with_its_pictures() -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert [cell["execution_count"] for cell in code_cells(kept())] == list(range(1, len(code_cells(kept())) + 1))
    assert_complete(kept())


@pytest.mark.long
def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])  # the notebook adds to it
    now = executed(NOTEBOOK)
    assert_complete(now)
    # Of the runs in experiments/results, nothing depends on the machine or on versions.
    assert printed(now)[-1] == printed(kept())[-1]
