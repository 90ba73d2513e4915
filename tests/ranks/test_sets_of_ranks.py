"""Ranks that do not all have the same batches: collectives of each set of ranks keep one order nevertheless."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import orthon
from orthon import MatrixView
from orthon.testing import Pool, RankError

WORLD, STEPS = 4, 4
RULES: dict[str, dict[str, Any]] = {
    "Dion": {},
    "Muon": {"polar": "svd"},
    "NorMuon": {"polar": "svd"},
    "Dion2": {"polar": "svd", "fraction": 0.5},
    "Dion3": {"polar": "svd", "fraction": 0.5},
}
# What fully_shard makes of fewer experts than ranks, and of one more: some ranks have one batch more than others.
SHAPES = {
    "fewer experts than ranks": [(16, 8), (2, 8, 6), (24, 8), (12, 10)],
    "more experts than ranks": [(16, 8), (WORLD + 1, 8, 6), (WORLD + 1, 8, 6), (24, 8), (12, 10)],
}


def gradients(shapes: list[tuple[int, ...]]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(STEPS)]


def trained(rule: str, shapes: list[tuple[int, ...]], sharded: bool) -> list[Tensor]:
    """Return the whole weights, which start at zero, after some steps."""
    mesh = init_device_mesh("cpu", (WORLD,)) if sharded else None

    def placed(x: Tensor) -> Tensor:
        return x if mesh is None else distribute_tensor(x, mesh, [Shard(0)])

    named = [(f"w{i}", nn.Parameter(placed(torch.zeros(s, dtype=torch.float64)))) for i, s in enumerate(shapes)]
    groups = [{"params": named, "view": MatrixView()}]
    optimizer = getattr(orthon, rule)(groups, lr=0.1, **RULES[rule])
    for grads in gradients(shapes):
        for (_, param), grad in zip(named, grads, strict=True):
            param.grad = placed(grad)
        optimizer.step()
    weights = [param.detach() for _, param in named]
    return weights if mesh is None else [weight.full_tensor() for weight in weights]  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_some_ranks_have_more_batches(ranks: Pool, shapes: str, rule: str) -> None:
    expected = trained(rule, SHAPES[shapes], sharded=False)
    for result in ranks.run(WORLD, trained, rule, SHAPES[shapes], True):
        for found, right, shape in zip(result, expected, SHAPES[shapes], strict=True):
            torch.testing.assert_close(found, right, rtol=0, atol=1e-10, msg=f"{rule}, {shapes}, {shape}")


def with_a_late_expert(rule: str) -> None:
    """Train weights of all ranks beside an expert of each; that of rank 0 has its first gradient in the third step."""
    mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
    shapes = [(16, 8), (24, 8), (12, 10)]
    named = [(f"w{i}", nn.Parameter(distribute_tensor(torch.randn(s), mesh, [Shard(0)]))) for i, s in enumerate(shapes)]
    expert = nn.Parameter(torch.randn(8, 6))
    optimizer = getattr(orthon, rule)([*named, (f"expert{rank}", expert)], **RULES[rule])
    for step in range(STEPS):
        for (_, param), shape in zip(named, shapes, strict=True):
            param.grad = distribute_tensor(torch.randn(shape), mesh, [Shard(0)])
        expert.grad = torch.randn(8, 6) if rank or step >= 2 else None
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_a_rank_meets_a_batch_of_its_own_later(ranks: Pool, rule: str) -> None:
    ranks.run(2, with_a_late_expert, rule, timeout=30)


def with_a_forced_route() -> None:
    mesh = init_device_mesh("cpu", (2,))
    cut = nn.Parameter(distribute_tensor(torch.zeros(8, 6), mesh, [Shard(0)]))
    copied = nn.Parameter(distribute_tensor(torch.zeros(8, 6), mesh, [Replicate()]))
    optimizer = orthon.Muon([("cut", cut), ("copied", copied)], polar_route="shards")
    for param in (cut, copied):
        param.grad = torch.ones_like(param)
    optimizer.step()


def test_a_route_that_cannot_be_served_is_refused_before_anything_changes(ranks: Pool) -> None:
    with pytest.raises(RankError, match="parameter 'copied': polar_route='shards' needs matrices of which one side"):
        ranks.run(2, with_a_forced_route)
