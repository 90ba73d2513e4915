"""The tables of docs/memory.md: made anew, and compared with the page."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from tests.test_owned_memory import DION, MUON, SQUARE, TALL, WIDE, taken

PAGE = (Path(__file__).parents[1] / "docs" / "memory.md").read_text()
F32, BF16 = torch.float32, torch.bfloat16
POLAR = {"polar_dtype": BF16}

OF_A_STEP: list[tuple[str, str, dict[str, Any]]] = [
    ("Dion 1/16", "Dion", {"rank_fraction": 1 / 16}),
    ("Dion 1/4", "Dion", {"rank_fraction": 1 / 4}),
    ("Dion 1/4 of the paper", "Dion", {**orthon.Dion.PAPER, "rank_fraction": 1 / 4}),
    ("Dion 1/2", "Dion", {"rank_fraction": 1 / 2}),
    ("Dion 1", "Dion", {"rank_fraction": 1.0}),
    ("Muon, NorMuon with polar factors in bfloat16", "Muon", POLAR),
    ("Muon, NorMuon with polar factors in bfloat16", "NorMuon", POLAR),
    ("Dion2 1/4, likewise", "Dion2", POLAR),
    ("Dion3 1/4, likewise", "Dion3", POLAR),
]
OF_AN_OWNER: list[tuple[str, str, dict[str, Any], list[tuple[int, int]]]] = [
    ("Dion 1/4: 1:3, square", "Dion", {"route": "owners"}, [WIDE, SQUARE]),
    ("Dion 1/4 of the paper: 1:3, square", "Dion", DION, [WIDE, SQUARE]),
    ("Muon, NorMuon with polar factors in bfloat16: square, 1:3", "Muon", MUON, [SQUARE, WIDE]),
    ("Dion2 1/4, likewise, whose ranks hold some of the rows", "Dion2", {}, [SQUARE, WIDE]),
    ("Dion3 1/4, which selects rows: square, 1:3, 3:1", "Dion3", {}, [SQUARE, WIDE, TALL]),
]


def told(row: str) -> list[list[float]]:
    """Return the numbers of a row, for each dtype."""
    (cells,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [[float(number) for number in cell.split(",")] for cell in cells.split("|")]


def agree(row: str, found: list[list[float]]) -> None:
    for of_page, measured in zip(told(row), found, strict=True):
        for number, exact in zip(of_page, measured, strict=True):
            assert abs(number - exact) <= 0.06, f"{row}: {found}"


@pytest.mark.parametrize(("row", "name", "options"), OF_A_STEP, ids=lambda value: value if type(value) is str else "")
def test_what_a_step_takes(row: str, name: str, options: dict[str, Any]) -> None:
    def matrices(shape: tuple[int, int], dtype: torch.dtype) -> float:
        param = nn.Parameter(torch.zeros(shape, dtype=dtype, device="meta"))
        return orthon.explain(getattr(orthon, name)([param], **options)).temporary_bytes / param.nbytes

    agree(row, [[matrices(shape, dtype) for shape in ((768, 768), (768, 2304))] for dtype in (F32, BF16)])


@pytest.mark.parametrize(("row", "name", "options", "shapes"), OF_AN_OWNER, ids=[name for _, name, *_ in OF_AN_OWNER])
def test_what_an_owner_takes(row: str, name: str, options: dict[str, Any], shapes: list[tuple[int, int]]) -> None:
    def matrices(shape: tuple[int, int], dtype: torch.dtype) -> float:
        return taken(name, options, shape, dtype)[0] / (math.prod(shape) * dtype.itemsize)

    agree(row, [[matrices(shape, dtype) for shape in shapes] for dtype in (F32, BF16)])


def test_selected_columns_of_an_owner() -> None:
    """What the text under the first table says of tall matrices."""
    for name, options, most in (("Dion2", {}, 1.3), ("Dion3", {"selection_side": "short"}, 2.5)):
        found, _ = taken(name, options, TALL, BF16)
        assert found / (2 * math.prod(TALL)) == pytest.approx(most, abs=0.06)
