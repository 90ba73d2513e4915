"""Runs a notebook without Jupyter: its code cells in order, in one namespace.

`python -m tests.support.notebook examples/dion_in_pictures.ipynb` does so, and writes what they print and draw into the
file.
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DPI = 80
Cell = dict[str, Any]


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def executed(path: Path) -> dict[str, Any]:
    """Return a notebook with the outputs that its code cells have now. The file stays as it is."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    pyplot.close("all")
    with contextlib.chdir(path.parent), matplotlib.rc_context():
        for number, cell in enumerate(code_cells(notebook), 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
            cell["execution_count"] = number
            cell["outputs"] = [*_text(printed.getvalue()), *map(_picture, pyplot.get_fignums())]
            pyplot.close("all")
    return notebook


def pictures(notebook: dict[str, Any]) -> list[bytes]:
    """Return the PNG files in the outputs of a notebook."""
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [base64.b64decode(o["data"]["image/png"]) for o in outputs if o["output_type"] == "display_data"]


def _text(printed: str) -> list[dict[str, Any]]:
    lines = printed.splitlines(keepends=True)
    return [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []


def _picture(number: int) -> dict[str, Any]:
    file = io.BytesIO()
    pyplot.figure(number).savefig(file, format="png", dpi=DPI)
    image = base64.b64encode(file.getvalue()).decode()
    return {"output_type": "display_data", "metadata": {}, "data": {"image/png": image}}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    content = json.dumps(executed(target), indent=1, ensure_ascii=False)
    target.write_text(content + "\n", encoding="utf-8")
