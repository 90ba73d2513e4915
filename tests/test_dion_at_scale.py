"""The page "Dion at scale": it says what its file of plans has, and the file has what plans say today."""

import json
import math
from typing import Any

import pytest
from benchmarks import at_scale, at_scale_page


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(at_scale.RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_file_has_all_plans(results: dict[str, Any]) -> None:
    pairs = [(cell["size"], cell["ranks"]) for cell in results["cells"]]
    assert pairs == [(size, ranks) for size in at_scale.SIZES for ranks in at_scale.RANKS]
    for cell in results["cells"]:
        assert tuple(cell["optimizers"]) == at_scale.OPTIMIZERS


@pytest.mark.parametrize(
    ("size", "ranks", "words"),
    [("120M", 8, at_scale.OPTIMIZERS), ("1B", 512, ("adamw", "muon", "dion:1/16", "dion2:1/4"))],
)
def test_the_file_has_what_plans_say(results: dict[str, Any], size: str, ranks: int, words: tuple[str, ...]) -> None:
    kept = next(cell for cell in results["cells"] if (cell["size"], cell["ranks"]) == (size, ranks))
    made = at_scale.cell(size, ranks, words)
    assert made["training_seconds"] == pytest.approx(kept["training_seconds"])
    for word in words:
        for figure in ("seconds", "exposed", "traffic", "state_bytes", "peak_bytes", "operations", "collectives"):
            now, before = made["optimizers"][word][figure], kept["optimizers"][word][figure]
            assert math.isclose(now, before, rel_tol=0.01), f"{word}, {figure}: run python -m benchmarks.at_scale anew"
        for link, sent in kept["optimizers"][word]["wire"].items():
            assert made["optimizers"][word]["wire"][link] == pytest.approx(sent, rel=0.01)


def test_the_page_says_what_the_file_has(results: dict[str, Any]) -> None:
    page = at_scale_page.PAGE.read_text(encoding="utf-8")
    assert page == at_scale_page.text_of(results), "run python -m benchmarks.at_scale --page"
