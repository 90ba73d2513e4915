"""Exact polar factors on several ranks, which are those of one process.

On their shards ranks have only Gram matrices, of which the condition numbers are squares. So with polar="svd" owners
take whole matrices, also where shards would be quicker.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon.machines import MACHINES, Link
from orthon.testing import Pool, layouts

WORLD, STEPS = 4, 6
# Of the directions that a gradient has. From the square of the smallest one, rounding leaves four digits.
SIZES = torch.tensor([1.0, 1e-2, 1e-4, 1e-6], dtype=torch.float64)
SHAPES = [(36, 38), (38, 36)]
LAYOUTS = {
    "FSDP 4": "fsdp 0",
    "HSDP 2 × 2": "hsdp",
    "FSDP 2 × TP 2, both sides": "fsdp x tp other dim",
    "FSDP 2 × TP 2, rows": "fsdp x tp same dim",
}


def trained(rule: str, layout: str | None) -> list[Tensor]:
    """Return this rank's shards of the weights after some steps, or the whole weights in one process."""
    generator = torch.Generator().manual_seed(0)

    def drawn(m: int, n: int) -> Tensor:
        return torch.randn(m, n, generator=generator, dtype=torch.float64)

    def placed(x: Tensor) -> Tensor:
        return x if layout is None else layouts.build(layout, WORLD, x)

    named = [(f"w{i}", nn.Parameter(placed(drawn(*shape)))) for i, shape in enumerate(SHAPES)]
    optimizer = getattr(orthon, rule)(named, lr=0.1, polar="svd")
    for _ in range(STEPS):
        for (_, param), (m, n) in zip(named, SHAPES, strict=True):
            param.grad = placed(drawn(m, len(SIZES)) * SIZES @ drawn(len(SIZES), n))
        optimizer.step()
    return [layouts.local(param.detach()) for _, param in named]


@pytest.mark.parametrize("rule", ["Muon", "NorMuon", "Dion2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_factors_are_those_of_one_process(ranks: Pool, layout: str, rule: str) -> None:
    expected = trained(rule, None)
    for rank, found in enumerate(ranks.run(WORLD, trained, rule, LAYOUTS[layout])):
        for mine, whole in zip(found, expected, strict=True):
            part = layouts.cut(whole, *layouts.parts(LAYOUTS[layout], WORLD, tuple(whole.shape))[rank])
            torch.testing.assert_close(mine, part, rtol=0, atol=1e-10)


# Of one tall matrix for four ranks: where work is slow and sending takes no time, shards are the quickest.
SLOW = replace(MACHINES["cpu"], float64=1e6, factorization=1e6, within_node=Link(bandwidth=1e15, latency=1e-12))


def routes(rule: str, layout: str, polar: str) -> set[str]:
    """Return how ranks would work on a tall matrix, of whose columns all have a part."""
    param = nn.Parameter(layouts.build(layout, WORLD, torch.zeros(4000, 6, dtype=torch.float64)))
    return {batch.route for batch in orthon.explain(getattr(orthon, rule)([param], polar=polar, machine=SLOW)).batches}


@pytest.mark.parametrize("rule", ["Muon", "NorMuon"])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "both" not in name])
def test_exact_factors_are_never_made_on_shards_by_auto(ranks: Pool, layout: str, rule: str) -> None:
    assert ranks.run(WORLD, routes, rule, LAYOUTS[layout], "polar_express") == [{"shards"}] * WORLD
    assert ranks.run(WORLD, routes, rule, LAYOUTS[layout], "svd") == [{"owners"}] * WORLD
