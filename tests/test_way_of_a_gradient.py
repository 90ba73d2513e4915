"""How much a reader has to follow: what a gradient passes through from `step()` to the weight."""

import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import orthon


@pytest.mark.parametrize(
    ("options", "functions", "most", "changes"), [(orthon.Dion.PAPER, 68, 18, 68), ({}, 76, 22, 100)]
)
def test_the_way_from_a_step_to_the_weight_is_short(
    options: dict[str, Any], functions: int, most: int, changes: int
) -> None:
    """One process, a later step of Dion, of the paper's and with a tail.

    The paper's was 101 functions in 28 files with 102 changes of file. The tail's goes through the files of an
    orthonormalization twice, as it orthonormalizes both factors.
    """
    param = nn.Parameter(torch.randn(8, 12))
    optimizer = orthon.Dion([param], **options)
    for _ in range(3):
        param.grad = torch.randn(8, 12)
        optimizer.step()
    root, calls = str(Path(orthon.__file__).parent), list[tuple[str, str]]()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            calls.append((frame.f_code.co_filename, frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    optimizer.step()
    sys.setprofile(before)
    if torch.__version__ < (2, 13):  # for which a norm of torch has a form of ours
        calls = [call for call in calls if not call[0].endswith("axis_norms.py")]
    files = [file for file, _ in calls]
    assert len(set(calls)) <= functions
    assert len(set(files)) <= most
    assert sum(one != other for one, other in pairwise(files)) <= changes
