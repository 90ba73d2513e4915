"""What `explain` tells of the busiest ranks, against what these tell of themselves, and against all other ranks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

import orthon
from orthon import Dion, Explanation, Muon, NorMuon
from orthon.explain import Share
from orthon.explain.explained_step import ExplainedStep
from orthon.explain.shares import Shares
from orthon.machines import MACHINES
from tests.support.many_ranks import divided, fake_ranks

CASES = {
    "FSDP 512": {"fsdp": 512},
    "FSDP 64 × TP 8": {"fsdp": 64, "tp": 8},
    "HSDP 8 × 64": {"copies": 8, "fsdp": 64},
}


def explained(rank: int, case: str, rule: str) -> Explanation:
    """Return what `explain` says on one of 512 ranks."""
    with fake_ranks(512, rank):
        return orthon.explain(getattr(orthon, rule).for_model(divided(CASES[case])), machine="h100")


@pytest.mark.parametrize("rule", ["Dion", "Muon"])
@pytest.mark.parametrize("case", CASES)
def test_the_busiest_ranks_say_the_same_of_themselves(case: str, rule: str) -> None:
    told = explained(301, case, rule)
    assert told.here is not None
    assert told.here.rank == 301
    for busiest in {told.most_work, told.most_bytes}:
        assert busiest is not None
        there = explained(busiest.rank, case, rule)
        assert there.here == busiest
        assert busiest.sent == sum(message.sent for message in there.messages)
        assert busiest.received == sum(message.received for message in there.messages)
        # And each rank finds the same busiest ones.
        for mine, its in ((told.most_work, there.most_work), (told.most_bytes, there.most_bytes)):
            assert mine is not None
            assert its is not None
            assert (its.products, its.working) == pytest.approx((mine.products, mine.working))
            assert its.sent + its.received == pytest.approx(mine.sent + mine.received)


def lying(mesh: DeviceMesh, placements: tuple[Placement, ...], shape: tuple[int, int]) -> Tensor:
    """Return a parameter without storage."""
    whole = torch.empty(shape, device="meta")
    local = whole
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            pieces = torch.chunk(local, mesh.size(axis), placement.dim)
            place = mesh.get_local_rank(axis)
            local = pieces[place] if place < len(pieces) else local.narrow(placement.dim, 0, 0)
    made = DTensor.from_local(
        local.contiguous(), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return nn.Parameter(made)


MESHES: dict[str, tuple[tuple[int, ...], tuple[Placement, ...]]] = {
    "rows over all": ((6,), (Shard(0),)),
    "copies": ((2, 3), (Replicate(), Shard(0))),
    "both sides over all": ((3, 2), (Shard(0), Shard(1))),
    "both sides over half of all": ((4, 3), (Shard(0), Shard(1))),  # one hop after the other
}
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Dion by owners": (Dion, {"route": "owners"}),
    "Dion on shards": (Dion, {"route": "shards"}),
    "Muon by owners": (Muon, {"polar_route": "owners"}),
    "NorMuon": (NorMuon, {}),
}
# Some are not divisible, and there are fewer matrices of a shape than ranks.
SHAPES = [(96, 48)] * 9 + [(50, 70)] * 3 + [(240, 96)] * 5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mesh", MESHES)
def test_no_rank_is_busier_than_the_busiest(mesh: str, rule: str) -> None:
    sizes, placements = MESHES[mesh]
    make, options = RULES[rule]
    ranks, halves = math.prod(sizes), 2 if mesh == "both sides over half of all" else 1
    with fake_ranks(ranks * halves, 4):
        axes = tuple(f"{mesh}, axis {axis}" for axis in range(len(sizes)))
        whole = init_device_mesh("cpu", (halves, *sizes), mesh_dim_names=(f"{mesh}, halves", *axes))
        optimizer = make([lying(whole[axes], placements, shape) for shape in SHAPES], **options)
        explanation = orthon.explain(optimizer, machine="a100")
        shares: list[Share] = []
        for rank in range(ranks):
            run = ExplainedStep(optimizer, MACHINES["a100"], torch.device("cuda"), rank=rank)
            shares.append(Shares(run.batches, MACHINES["a100"]).of(rank, run.messages))
    assert explanation.here == shares[4]
    assert explanation.most_work is not None
    assert explanation.most_bytes is not None
    assert explanation.most_work.working == pytest.approx(max(share.working for share in shares))
    assert explanation.most_work == shares[explanation.most_work.rank]
    most = max(share.sent + share.received for share in shares)
    # On shards, who factors which Gram matrix is not in the search for the busiest: at most one more for each batch.
    least = 0.85 if rule == "Dion on shards" else 0.98
    assert explanation.most_bytes.sent + explanation.most_bytes.received >= least * most
    # Each byte that is sent is received by another rank.
    assert sum(share.sent for share in shares) == pytest.approx(sum(share.received for share in shares))
    if rule != "Dion on shards":
        alone = orthon.explain(make([nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]))
        assert alone.here is not None
        for kind in ("products", "factoring"):
            assert sum(getattr(share, kind) for share in shares) == pytest.approx(getattr(alone.here, kind))
