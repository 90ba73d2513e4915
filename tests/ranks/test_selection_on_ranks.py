"""Which rows Dion2 updates on ranks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion2
from orthon.testing import Pool, layouts
from orthon.testing.factors import EXACT
from orthon.testing.layouts import LAYOUTS, layouts_on

LR = 0.5
PLAIN = [layout for layout in layouts_on(4) if not LAYOUTS[layout].compressed]


def gradient(kind: str, shape: tuple[int, int]) -> Tensor:
    """Return a float32 gradient whose norms are hard to tell apart."""
    generator = torch.Generator().manual_seed(0)
    m, n = shape
    row = torch.randn(n, generator=generator) * torch.logspace(-6, 6, n)
    if kind == "permuted rows":  # all norms are equal, but sums in float32 or by parts are not
        return torch.stack([row[torch.randperm(n, generator=generator)] for _ in range(m)])
    if kind == "equal rows":
        return row.repeat(m, 1)
    assert kind == "nearly equal rows"
    G = row.repeat(m, 1)
    G[:, 0] *= 1 + 1e-3 * torch.randn(m, generator=generator)
    return G


def changed_on_this_rank(layout: str, G: Tensor, options: dict[str, Any], world: int) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the weight, which starts at zero, and of the momentum, after a step."""
    param = nn.Parameter(layouts.build(layout, world, torch.zeros_like(G)))
    optimizer = Dion2([("w", param)], lr=LR, replicas=layouts.replica_group(layout, world), **options)
    param.grad = layouts.build(layout, world, G)
    optimizer.step()
    return layouts.local(param.detach()), layouts.local(optimizer.state[param]["momentum"])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["permuted rows", "equal rows", "nearly equal rows"])
@pytest.mark.parametrize("layout", PLAIN)
def test_global_selection_is_the_same_on_every_layout(ranks: Pool, layout: str, kind: str, turned: bool) -> None:
    G = gradient(kind, (13, 22))
    G = G.T.contiguous() if turned else G
    alone = nn.Parameter(torch.zeros_like(G))
    optimizer = Dion2([("w", alone)], lr=LR, momentum=0.5)
    alone.grad = G
    optimizer.step()
    kept = optimizer.state[alone]["momentum"]  # halved where it was chosen: which tells the rows exactly
    results = ranks.run(4, changed_on_this_rank, layout, G, {"momentum": 0.5}, 4)
    for rank, ((rows, cols), (_, momentum)) in enumerate(
        zip(layouts.parts(layout, 4, tuple(G.shape)), results, strict=True)
    ):
        assert torch.equal(momentum, kept[rows][:, cols]) or not momentum.numel(), f"{layout}, {kind}: rank {rank}"


@pytest.mark.parametrize("shape", [(13, 22), (22, 13), (3, 9)])
@pytest.mark.parametrize("layout", PLAIN)
def test_local_selection_takes_a_share_of_each_part(ranks: Pool, layout: str, shape: tuple[int, int]) -> None:
    """The chosen rows are those with the largest norms in each rank's part; their polar factor is that of all."""
    G = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"selection": "local", "fraction": 0.3, "polar": "svd", "adjust_lr_fn": "none"}
    side = int(shape[0] > shape[1])
    norms = G.abs().sum(1 - side)
    parts = layouts.parts(layout, 4, shape)
    chosen = torch.zeros(shape[side], dtype=torch.bool)
    for part in parts:
        mine = part[side]
        chosen[mine[norms[mine].sort(descending=True, stable=True).indices[: math.ceil(0.3 * len(mine))]]] = True
    M = G if side == 0 else G.T
    expected = torch.zeros_like(M)
    expected[chosen] = -LR * EXACT.polar(M[chosen])
    expected = expected if side == 0 else expected.T
    for rank, ((rows, cols), (weight, _)) in enumerate(
        zip(parts, ranks.run(4, changed_on_this_rank, layout, G, options, 4), strict=True)
    ):
        if weight.numel():
            torch.testing.assert_close(
                weight, expected[rows][:, cols], rtol=0, atol=1e-10, msg=f"{layout}: rank {rank}"
            )
