"""What the update of a matrix takes by the estimate of its rule, against operations and numbers that are counted."""

from typing import Any

import pytest

from tests.rules_table import TAIL
from tests.support.counted_run import layers_on, run_of
from tests.support.llama import Layers

RANKS = 8
TALL, WIDE, SQUARE = (832, 256), (256, 832), (256, 256)
DION: dict[str, dict[str, Any]] = {
    "paper": {},
    "orthonormalize": {"right_factor": "orthonormalize"},
    "two power iterations": {"power_iterations": 2},
    "no feedback": {"residual_momentum": None},
    "no feedback, orthonormalize": {"residual_momentum": None, "right_factor": "orthonormalize"},
    "tail": {**TAIL, "nesterov": True},
    "tail, unit columns": {**TAIL, "right_factor": "normalize"},
    "tail and feedback": {"tail": 0.7, "right_factor": "orthonormalize"},
}


@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE], ids=str)
@pytest.mark.parametrize("route", ["owners", "shards"])
@pytest.mark.parametrize("name", DION)
def test_dion(name: str, route: str, shape: tuple[int, int]) -> None:
    """Each rank owns one of as many matrices, or has shards of all."""
    options = {**DION[name], "rank_fraction": 1 / 4, "route": route}
    with layers_on({"fsdp": RANKS}, Layers({"w": shape[::-1]}, RANKS)) as layers:
        step = run_of(layers, "Dion", options)
        ((wave,),) = step.sets
        member, layout = wave[0].pieces[0].member, wave[0].pieces[0].layout
        told = member.rule.work.effort(route, layout, member.group)
        counts = step.counted()
    products = (counts.flops - counts.factoring) / (1 if route == "owners" else RANKS)
    assert 0.95 * told.products <= products <= 1.25 * told.products, f"{products / told.products:.2f} of the estimate"
    numbers = counts.sent / 2 / RANKS
    assert 0.9 * told.numbers <= numbers <= 1.4 * told.numbers, f"{numbers / told.numbers:.2f} of the estimate"
