"""The Python of the how-to pages about other people's packages runs, also what the default environment cannot run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "how_to"


def program(page: str) -> str:
    """Return all Python of a page, but what a comment calls wrong."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:<!-- not run: ([^>]+) -->\n)?```python\n(.*?)```", text, flags=re.S)
    assert blocks
    return "\n".join(["__name__ = 'page'", *(code for why, code in blocks if "what not to write" not in why)])


@pytest.mark.parametrize("page", ["lightning", "plain_pytorch", "search", "torchtitan"])
def test_a_page_runs(page: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", program(page)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
