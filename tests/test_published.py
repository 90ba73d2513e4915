"""Published step times: the page shows what the plan says today, and most figures are near."""

import re
from importlib import import_module

import pytest
from benchmarks.published import models, planned
from benchmarks.published.__main__ import END, PAGE, START
from benchmarks.published.rows import NEAR, ROWS, table

# Those that a plan has to come near to: of arXiv 2608.11612, of Dion's authors, of microsoft/dion#70 and of NVIDIA.
ASKED = {174.1, 127.0, 38.1, 6.1, 5.8, 632 / 157, 297, 395}


@pytest.fixture(scope="module")
def ratios() -> dict[str, float]:
    return {row.what: row.planned() / row.said for row in ROWS}


def test_the_page_shows_the_table(ratios: dict[str, float]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page.split(START)[1].split(END)[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("| ")]
    lines = {line[0]: line for line in cells if line[0] in ratios}
    assert lines.keys() == ratios.keys()
    for row in ROWS:
        _, where, source, said, value, ratio = lines[row.what]
        assert (where, source) == (row.where, row.source)
        assert float(said.split()[0]) == pytest.approx(row.said, rel=1e-3)
        assert float(ratio) == pytest.approx(ratios[row.what], abs=0.006)
        assert float(value.split()[0]) == pytest.approx(ratios[row.what] * row.said, rel=0.006)
    near = sum(1 / NEAR <= ratio <= NEAR for ratio in ratios.values())
    assert f"{near} of {len(ROWS)} are within a factor of {NEAR}." in shown
    assert shown.strip() == table().strip()


def test_most_figures_are_near(ratios: dict[str, float]) -> None:
    near = {row.what for row in ROWS if 1 / NEAR <= ratios[row.what] <= NEAR}
    asked = {row.what for row in ROWS if row.said in ASKED or "AdamW" in row.what}
    assert len(asked) == len(ASKED) + 2
    assert len(near & asked) >= 5
    assert len(near) >= 12
    assert all(1 / 3 < ratio < 3 for ratio in ratios.values())


def test_the_14b_model_sends_what_was_published() -> None:
    """5,479 MiB a step, with what a rank keeps for itself, and a quarter of it with Dion3 1/4. So its shapes are it."""
    machine = planned.captured(planned.B200)
    for name, published in (("Muon", 5479), ("NorMuon", 5479), ("Dion3 1/4", 1370)):
        row = planned.on_shards(models.DION3_14B, name, 8, machine)
        assert row.wire["within node"] * 8 / 7 == pytest.approx(published * 2**20, rel=0.02), name


def test_the_small_model_has_the_published_parameters() -> None:
    numbers = sum(param.numel() for param in models.DION3_1B.build().parameters())
    assert numbers == pytest.approx(1.06e9, rel=0.01)


def test_plain_steps_multiply_whole_matrices() -> None:
    """Five steps of m × n matrices take 20 m n² + 10 n³ operations, and the Gram form fewer."""
    row = planned.on_shards(models.DION3_14B, "Muon", 8, planned.captured(planned.B200))
    shapes = [(5120, 5120)] * 2 + [(5120, 1024)] * 2 + [(14_592, 5120)] * 3 + [(5120, 40)]
    flops = sum(20 * m * n**2 + 10 * n**3 for m, n in shapes) * 40 / 8
    assert row.flops["bfloat16"] == pytest.approx(flops, rel=0.01)
    module = import_module("orthon.linalg.polar")
    with planned.plain_steps():
        assert module.GRAM_ASPECT > 1e9
    assert module.GRAM_ASPECT == 2.5


def test_sources_can_be_found() -> None:
    for row in ROWS:
        assert re.match(r"arXiv \d{4}\.\d{5}|[\w.-]+/[\w.-]+#\d+|NVIDIA's blog", row.source), row.source
