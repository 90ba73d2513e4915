"""Faults in the middle of a wave, while matrices are on the way to their owners or back: an error, never a hang."""

import os
import re
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

import orthon
from orthon.testing import Pool, RankError

WORLD, FAULTY = 4, 2
EXCHANGE = dist.all_to_all_single
SHAPES = [(8, 12)] * 5 + [(12, 8)] * 5
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "dion": ("Dion", {"route": "owners"}),
    "muon": ("Muon", {"polar_route": "owners"}),
}
# The exchange of the third step before which the fault comes: each owner takes one matrix in a wave. The ways of the
# first two waves to the owners are the first exchanges, and then comes the first way back.
PLACES = {"before any": 0, "between two waves": 1, "before the first way back": 2, "in a later wave": 5}


def trained(rule: str, fault: Callable[[], None] | None, place: str, seconds: float | None = None) -> list[Tensor]:
    """Make three steps, in the last of which a rank has a fault, and return this rank's parts of the weights.

    Args:
        rule: a key of `RULES`.
        fault: what happens on the rank.
        place: a key of `PLACES`.
        seconds: after which a collective is given up; None for those of the process group that is there.
    """
    group = dist.group.WORLD if seconds is None else dist.new_group(timeout=timedelta(seconds=seconds))
    mesh = DeviceMesh.from_group(group, "cpu")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)

    def placed(shape: tuple[int, int]) -> Tensor:
        whole = torch.randn(shape, generator=generator, dtype=torch.float64)
        return DTensor.from_local(torch.chunk(whole, WORLD)[dist.get_rank()], mesh, [Shard(0)], run_check=False)

    params = [nn.Parameter(placed(shape)) for shape in SHAPES]
    name, options = RULES[rule]
    optimizer = getattr(orthon, name)(params, wave_memory=1.0, **options)
    for step in range(3):
        for param, shape in zip(params, SHAPES, strict=True):
            param.grad = placed(shape)
        if step == 2 and fault is not None and dist.get_rank() == FAULTY:
            _have_a_fault(fault, PLACES[place])
        optimizer.step()
    assert dist.all_to_all_single is EXCHANGE, f"there has been no fault {place}"
    return [param.detach().to_local() for param in params]  # type: ignore[attr-defined]


def _have_a_fault(fault: Callable[[], None], after: int) -> None:
    count = 0

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if count == after:
            dist.all_to_all_single = EXCHANGE
            fault()
        count += 1
        return EXCHANGE(*args, **kwargs)

    dist.all_to_all_single = spoiled


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("out of luck")


def be_late() -> None:
    time.sleep(1)


def be_much_too_late() -> None:
    time.sleep(6)


def cases(*, short: tuple[str, str]) -> pytest.MarkDecorator:
    """Return a table of all rules and places, of which the short run has one."""
    marks = {case: [] if case == short else [pytest.mark.long] for case in product(RULES, PLACES)}
    return pytest.mark.parametrize(("rule", "place"), [pytest.param(*case, marks=m) for case, m in marks.items()])


@cases(short=("dion", "in a later wave"))
def test_a_rank_that_is_late_changes_nothing(ranks: Pool, rule: str, place: str) -> None:
    expected = ranks.run(WORLD, trained, rule, None, place)
    for found, right in zip(ranks.run(WORLD, trained, rule, be_late, place), expected, strict=True):
        assert all(map(torch.equal, found, right))


@cases(short=("dion", "before the first way back"))
def test_a_rank_that_is_killed_is_an_error_on_all_others(ranks: Pool, rule: str, place: str) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(WORLD, trained, rule, die, place, timeout=40)
    assert caught.value.died == (FAULTY,)
    assert not caught.value.hung
    others = [rank for rank in range(WORLD) if rank != FAULTY]
    assert sorted(caught.value.failures) == others, str(caught.value)


@cases(short=("muon", "between two waves"))
def test_a_rank_that_comes_too_late_is_a_time_out_on_all_others(ranks: Pool, rule: str, place: str) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(WORLD, trained, rule, be_much_too_late, place, 2.0, timeout=40)
    assert not caught.value.hung
    for rank in range(WORLD):
        if rank != FAULTY:
            assert caught.value.failures[rank].type in ("RuntimeError", "DistBackendError")
    messages = [failure.message for failure in caught.value.failures.values()]
    assert any(re.search("timed? ?out", message, re.IGNORECASE) for message in messages), messages


@cases(short=("dion", "before any"))
def test_an_error_on_one_rank_is_told(ranks: Pool, rule: str, place: str) -> None:
    with pytest.raises(RankError, match="out of luck") as caught:
        ranks.run(WORLD, trained, rule, fail, place, 2.0, timeout=40)
    assert not caught.value.hung
