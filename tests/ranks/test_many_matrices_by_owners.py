"""Batches of many matrices, of which each rank owns several: every part comes back to its own matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor

import orthon
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on

MATRICES, SHAPE, WORLD = 9, (12, 14), 4
CASES = [layout for layout in layouts_on(WORLD) if not LAYOUTS[layout].compressed]
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "muon": (orthon.Muon, {"polar_route": "owners"}),
    "dion2": (orthon.Dion2, {"fraction": 0.5}),  # as many rows of each matrix on each rank as it happens
}


def after_a_step(rule: str, layout: str | None) -> list[Tensor]:
    """This rank's parts of all matrices, or without a layout the whole ones."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for _ in range(MATRICES):
        weight, grad = (torch.randn(SHAPE, generator=generator) for _ in range(2))
        if layout is not None:
            weight, grad = (layouts.build(layout, WORLD, x) for x in (weight, grad))
        params.append(torch.nn.Parameter(weight))
        params[-1].grad = grad
    kind, options = RULES[rule]
    if layout is not None:
        options = {**options, "replicas": layouts.replica_group(layout, WORLD)}
    kind(params, lr=0.1, **options).step()
    return [layouts.local(param.detach()) for param in params]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", CASES)
def test_every_part_comes_back(ranks: Pool, layout: str, rule: str) -> None:
    expected = after_a_step(rule, None)
    by_rank = ranks.run(WORLD, after_a_step, rule, layout)
    for rank, found in enumerate(by_rank):
        for number, (part, whole) in enumerate(zip(found, expected, strict=True)):
            if not LAYOUTS[layout].plain:
                rows, cols = layouts.parts(layout, WORLD, SHAPE)[rank]
                whole = whole[rows][:, cols]
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5, msg=f"matrix {number} on rank {rank}")
