"""What the host does for many small parameters: it grows with their number, and no faster."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import orthon


def calls_of_steps(make: Any, count: int) -> tuple[int, int]:
    """Return how many calls of Orthon's functions the first step makes, and a later one."""
    params = [(f"w{i}", nn.Parameter(torch.zeros(4, 4))) for i in range(count)]
    optimizer = make(params)
    for _, p in params:
        p.grad = torch.ones(4, 4)
    root, counts = str(Path(orthon.__file__).parent), list[int]()

    def note(frame: FrameType, event: str, _: object) -> None:
        counts[-1] += event == "call" and frame.f_code.co_filename.startswith(root)

    before = sys.getprofile()
    for _ in range(3):
        counts.append(0)
        sys.setprofile(note)
        optimizer.step()
        sys.setprofile(before)
    return counts[0], counts[-1]


@pytest.mark.parametrize("make", [orthon.Dion, orthon.Muon, orthon.Dion2, orthon.Dion3], ids=lambda make: make.__name__)
def test_calls_grow_with_the_number_of_parameters(make: Any) -> None:
    few, many = calls_of_steps(make, 200), calls_of_steps(make, 800)
    for step, (one, other) in enumerate(zip(few, many, strict=True)):
        assert other <= 4.1 * one, f"{('first', 'later')[step]} step: {one} calls for 200, {other} for 800"
    # Of each parameter: whether it lies as before.
    assert many[1] <= 1.5 * 800 + 400, f"a later step makes {many[1]} calls for 800 parameters"
