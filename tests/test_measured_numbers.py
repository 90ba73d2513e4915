"""Losses with intervals that pages tell: each is in a page that is made from the data."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEASURED = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "measured").glob("*.md"))
PAGES = [*sorted((ROOT / "docs" / "choose").glob("*.md")), ROOT / "README.md"]

_INTERVAL = re.compile(r"[+−-]?\d\.\d{3} ± \d\.\d{3}")


def told(text: str) -> set[str]:
    """Return the intervals in a text, without signs."""
    return {found.lstrip("+−-") for found in _INTERVAL.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_losses_are_those_of_the_data(page: Path) -> None:
    assert not (missing := told(page.read_text(encoding="utf-8")) - told(MEASURED)), missing


def test_there_are_some() -> None:
    assert len(told(MEASURED)) > 50
    assert "0.040 ± 0.008" in told((ROOT / "README.md").read_text(encoding="utf-8"))
    assert told("none (−0.001 ± 0.093)") == {"0.001 ± 0.093"}
