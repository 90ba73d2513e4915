"""The scale of gradients does not matter on ranks either, whichever way they work together."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import MixedOptimizer
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on

PLAIN = [layout for layout in layouts_on(4) if not LAYOUTS[layout].compressed]
TOGETHER = [layout for layout in PLAIN if layout != "unaware"]  # whose ranks know of one another
SHAPES = [(13, 22), (24, 8)]
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "dion, owners": ("dion", {"route": "owners"}),
    "dion, shards": ("dion", {"route": "shards"}),
    "muon, owners": ("muon", {"polar_route": "owners"}),
    "normuon, Newton-Schulz": ("normuon", {"polar": "newton_schulz"}),
    "dion2": ("dion2", {"fraction": 0.5}),
    "dion3": ("dion3", {"fraction": 0.5}),
}
SCALES = {torch.float32: [1.0, 2.0**107, 2.0**-118], torch.float64: [1.0, 2.0**1000, 2.0**-600, 2.0**-1000]}


def weights_on_this_rank(layout: str, rule: str, options: dict[str, Any], dtype: torch.dtype) -> list[list[Tensor]]:
    """Return this rank's parts of the weights after two steps, for each scale."""
    found = []
    for scale in SCALES[dtype]:
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(layouts.build(layout, 4, torch.zeros(shape, dtype=dtype))) for shape in SHAPES]
        named = [(f"w{i}", param) for i, param in enumerate(params)]
        replicas = layouts.replica_group(layout, 4)
        optimizer = MixedOptimizer(
            named, algorithm=rule, options={"lr": 0.1, "weight_decay": 0.0, **options}, replicas=replicas
        )
        for _ in range(2):
            for param, shape in zip(params, SHAPES, strict=True):
                grad = torch.randn(shape, generator=generator, dtype=dtype)
                param.grad = layouts.build(layout, 4, scale * grad)
            optimizer.step()
        found.append([layouts.local(param.detach()).clone() for param in params])
    return found


@pytest.mark.parametrize("dtype", list(SCALES), ids=str)
@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("layout", PLAIN)
def test_the_scale_does_not_matter(ranks: Pool, layout: str, case: str, dtype: torch.dtype) -> None:
    rule, options = RULES[case]
    for rank, (expected, *others) in enumerate(ranks.run(4, weights_on_this_rank, layout, rule, options, dtype)):
        for scale, found in zip(SCALES[dtype][1:], others, strict=True):
            for a, b in zip(expected, found, strict=True):
                error = (a - b).norm() / max(a.norm(), 1e-2)
                assert error < 1e5 * torch.finfo(dtype).eps, f"rank {rank}, {scale:.0e}: {error:.0e}"


def error_on_this_rank(layout: str, bad_rank: int) -> str:
    """Return the error where the part of one rank has a number that is too large."""
    param = nn.Parameter(layouts.build(layout, 4, torch.zeros(13, 22)))
    optimizer = MixedOptimizer([("w", param)], algorithm="dion", options={}, replicas=layouts.replica_group(layout, 4))
    param.grad = layouts.build(layout, 4, torch.ones(13, 22))
    optimizer.step()
    before = layouts.local(param.detach()).clone()
    part = layouts.local(param.grad)
    if torch.distributed.get_rank() == bad_rank and part.numel():
        part.view(-1)[0] = 3e38
    try:
        optimizer.step()
    except FloatingPointError as error:
        assert torch.equal(layouts.local(param.detach()), before)
        return str(error)
    return ""


@pytest.mark.parametrize("layout", TOGETHER)
def test_all_ranks_refuse_what_one_has(ranks: Pool, layout: str) -> None:
    for message in ranks.run(4, error_on_this_rank, layout, 0):
        assert "the gradient of 'w' has numbers so large that sums of them would overflow" in message
