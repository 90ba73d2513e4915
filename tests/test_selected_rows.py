"""Which rows Dion2 and Dion3 update."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon.testing import references
from orthon.testing.formulas import run_both, start
from orthon.testing.gradients import sequence
from tests.rules_table import GRADIENTS, SHAPES, STEPS
from tests.support.closeness import assert_close
from tests.support.references import run


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_dion2_of_all_rows_is_muon(kind: str, shape: tuple[int, int]) -> None:
    """Only the stored momentum is multiplied earlier."""
    gradients = sequence(kind, *shape, STEPS)
    options = {"momentum": 0.9, "lr": 0.1}
    muon = run("muon", gradients, {**options, "nesterov": False})
    dion2 = run("dion2", gradients, {**options, "fraction": 1.0})
    case = f"{kind}, {shape}"
    assert_close(dion2.found, muon.found, 1e-12, case)
    assert_close(dion2.state["momentum"], 0.9 * muon.state["momentum"], 1e-12, f"{case}: momentum")
    if kind not in ("live_rows", "uneven_rows"):
        normuon = run("normuon", gradients, {**options, "nesterov": False}).found
        dion3 = run("dion3", gradients, {**options, "fraction": 1.0}).found
        assert_close(dion3, normuon, 1e-7, f"{case}: Dion3 and NorMuon")


def side_of(shape: tuple[int, ...], rule: str, side: str | None = None) -> int:
    """Return the side from which a rule selects: 0 for rows. None is what the rule does by itself."""
    side = side or {"Dion2": "short", "Dion3": "rows"}[rule]
    return int(side == "short" and shape[0] > shape[1])


def changed(before: Tensor, after: Tensor, side: int) -> list[int]:
    """Return which rows differ, or columns."""
    return (before != after).any(dim=1 - side).nonzero().flatten().tolist()


def selections(
    names: list[str], shape: tuple[int, int], steps: int, rule: str = "Dion2", **options: Any
) -> list[list[list[int]]]:
    """Return the rows of each step and parameter."""
    params = [nn.Parameter(start(shape, torch.float64)) for _ in names]
    optimizer = getattr(orthon, rule)(
        zip(names, params, strict=True), **{"weight_decay": 0.0, "polar": "svd", **options}
    )
    found = []
    for _ in range(steps):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn(shape, dtype=torch.float64)
        optimizer.step()
        side = side_of(shape, rule, options.get("selection_side"))
        found.append([changed(b, p.detach(), side) for b, p in zip(before, params, strict=True)])
    return found


@pytest.mark.parametrize("rule", ["Dion2", "Dion3"])
@pytest.mark.parametrize("selection", ["global", "local", "random"])
@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (40, 40), (1, 7), (7, 1)])
@pytest.mark.parametrize("fraction", [1e-6, 0.24, 0.25, 0.26, 0.5, 1])
@pytest.mark.parametrize("side", [None, "rows", "short"])
def test_how_many_rows(fraction: float, shape: tuple[int, int], selection: str, rule: str, side: str | None) -> None:
    options = {} if side is None else {"selection_side": side}
    found = selections(["w"], shape, 2, rule, fraction=fraction, selection=selection, **options)
    expected = max(1, math.ceil(fraction * shape[side_of(shape, rule, side)]))
    assert [len(rows) for step in found for rows in step] == [expected] * 2


def test_random_rows_are_a_function_of_seed_name_and_step() -> None:
    options = {"selection": "random"}
    torch.manual_seed(0)
    found = selections(["a", "b"], (40, 50), 8, **options)
    torch.manual_seed(1)
    assert selections(["b", "a"], (40, 50), 8, **options) == [step[::-1] for step in found]
    assert selections(["a"], (40, 50), 8, **options) == [step[:1] for step in found]
    assert selections(["a"], (50, 40), 8, **options) == [step[:1] for step in found]  # columns
    assert selections(["a"], (40, 50), 8, seed=1, **options) != [step[:1] for step in found]
    for i in range(2):
        rows = [step[i] for step in found]
        for earlier, later in pairwise(rows):
            assert earlier != later
        # 80 draws of 10 in 40: each row is expected twice, and a row that never comes is rare.
        assert len({row for of_step in rows for row in of_step}) > 30
    assert all(step[0] != step[1] for step in found)


def test_random_rows_leave_the_global_random_state_untouched() -> None:
    param = nn.Parameter(torch.zeros(8, 8))
    optimizer = orthon.Dion2([param], selection="random")
    param.grad = torch.randn(8, 8)
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", ["dion2", "dion3"])
@pytest.mark.parametrize("shape", ["tall", "wide", "square"])
def test_random_rows_agree_with_the_reference(shape: str, rule: str) -> None:
    options = {"fraction": 0.3, "selection": "random"}
    name = rule.capitalize()
    rows = iter([torch.tensor(step[0]) for step in selections(["w"], SHAPES[shape], STEPS, name, **options)])

    def chosen(A: Tensor, k: int) -> Tensor:
        found = next(rows)
        assert len(found) == k
        return found

    reference = partial(references.REFERENCES[rule], select=chosen)
    gradients = sequence("full_rank", *SHAPES[shape], STEPS)
    both = run_both(rule, reference, gradients, {"polar": "svd", **options})
    assert_close(both.found, both.expected, 1e-10 if rule == "dion2" else 1e-7, f"{rule}, {shape}")
    assert both.state["step"] == STEPS


@pytest.mark.parametrize("shape", [(30, 70), (70, 30)], ids=["rows", "columns"])
def test_the_rows_do_not_depend_on_the_order_of_summation(shape: tuple[int, int]) -> None:
    """All rows have the same numbers, each in an order of its own: the first are taken, however they are summed."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.logspace(0, -9, 70, dtype=torch.float64)
    for _ in range(20):
        rows = torch.stack([numbers[torch.randperm(70, generator=generator)] for _ in range(30)])
        for dtype in (torch.float64, torch.float32):
            param = nn.Parameter(torch.zeros(shape, dtype=dtype))
            param.grad = (rows if shape[0] == 30 else rows.T).to(dtype)
            orthon.Dion2([param], polar="svd").step()
            found = param.detach().abs().sum(dim=int(shape[0] == 30)).nonzero().flatten().tolist()
            assert found == list(range(8))


def test_rows_that_wait_are_selected_in_the_end() -> None:
    """Rows without an update keep all of their momentum, and grow."""
    param = nn.Parameter(torch.zeros(12, 12))
    optimizer = orthon.Dion2([param], weight_decay=0.0, fraction=0.1, momentum=0.5)
    gradient = torch.logspace(0, -0.5, 12)[:, None] * torch.randn(12, 12)
    for _ in range(60):
        param.grad = gradient.clone()
        optimizer.step()
    assert param.any(dim=1).all()
