"""Values from others: whether they are bounded, how they are shown, and archives that a fuzzer has found."""

import io
import sys
from typing import Any

import pytest
import torch

from orthon.saving.shown import one_line, shown
from orthon.saving.untrusted.bounded import check_bounded
from orthon.saving.untrusted.errors import RefusedError
from orthon.saving.untrusted.torch_file import read_torch_file


def nested(levels: int, width: int = 1) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value] * width
    return value


ITSELF: list[Any] = [1]
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (3, True),
        ([1, [2, (3, {4: [5]})]], True),
        ([0] * 1000, True),
        (nested(60), True),
        (nested(70), False),
        ([nested(40), [nested(40)] * 3], True),
        (nested(9, width=4), False),  # 4 ** 9 lists
        ({"a": nested(30, width=2)}, False),
        (ITSELF, False),
        ([[1] * 60_000, [2] * 60_000], False),
    ],
)
def test_bounds(value: object, right: bool) -> None:
    if right:
        check_bounded(value, nodes=100_000)
    else:
        with pytest.raises(RefusedError):
            check_bounded(value, nodes=100_000)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.95, "0.95"),
        ("fast", "'fast'"),
        ((1,), "(1,)"),
        ([1, 2, 3], "[1, 2, 3]"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, …]"),
        (nested(50), "[[[[…]]]]"),
        ({"a": (1, 2)}, "{'a': (1, 2)}"),
        ("\x1b[31m\ud800", "'\\x1b[31m\\ud800'"),
        pytest.param(10**5000, "a huge number", id="huge"),
        (torch.zeros(3, 4), "a tensor of shape (3, 4)"),
        (torch.float32, "torch.float32"),
        (sys, "a module"),
    ],
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", [nested(200, width=2), "x" * 10**7, ITSELF, {"k" * 10**6: nested(100, width=3)}])
def test_what_is_shown_is_short(value: object) -> None:
    assert len(shown(value)) < 5000


def test_lines() -> None:
    assert one_line("a\nb\x1b[0m \ud800  c") == "a b\\x1b[0m \\ud800 c"
    assert len(one_line("x" * 10**7, limit=100)) == 100


def test_what_torch_saves_is_read() -> None:
    base = torch.arange(12.0)
    value = {
        "tensors": [base, base.view(3, 4).T, base[2:5], torch.tensor(True), torch.zeros(0, 3), torch.tensor(1 + 2j)],
        "dtypes": [torch.ones(3, dtype=d) for d in (torch.bfloat16, torch.float16, torch.int8, torch.uint16)],
        "plain": [None, True, -1, 2**40, 0.5, 1j, "ä", b"\0\xff", (1, (2,)), {3, "x"}, {4: [5]}],
        "torch": [torch.float64, torch.Size([2, 3]), torch.device("cpu"), torch.nn.Parameter(torch.ones(2))],
    }
    file = io.BytesIO()
    torch.save(value, file)
    found = read_torch_file(file)
    assert found["plain"] == value["plain"]
    assert found["torch"][:3] == value["torch"][:3]
    for ours, theirs in zip(found["tensors"] + found["dtypes"], value["tensors"] + value["dtypes"], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    found["tensors"][0][2] = 7  # tensors of one storage have one again
    assert found["tensors"][2][0] == 7
