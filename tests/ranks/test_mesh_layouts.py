"""The layouts against torch's own: distribute_tensor, and FSDP2 over tensor parallelism."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on

SHAPES = [(16, 24), (13, 10), (10, 21), (5, 12), (3, 7), (7, 3), (1, 1)]
CASES = [(layout, world) for world in (2, 4, 8) for layout in layouts_on(world)]


def numbered(shape: tuple[int, int]) -> Tensor:
    return torch.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape)


# On ranks


def locals_of(layout: str, world: int) -> list[tuple[Tensor, Tensor]]:
    """Return this rank's part for all shapes: of `build`, and where torch can, of distribute_tensor."""
    result = []
    for full in map(numbered, SHAPES):
        built = layouts.local(layouts.build(layout, world, full))
        theirs = built
        if not (LAYOUTS[layout].plain or LAYOUTS[layout].inner_first):
            mesh, placements = layouts.mesh(layout, world), LAYOUTS[layout].placements(world)
            theirs = distribute_tensor(full, mesh, placements).to_local()
        result.append((built, theirs))
    return result


def locals_of_a_model(style: str) -> list[tuple[tuple[Placement, ...], Tensor]]:
    """Return placements and local part of the weight of a layer under tensor parallelism and FSDP2."""
    result = []
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for full in map(numbered, SHAPES):
        model = nn.Sequential(nn.Linear(full.shape[1], full.shape[0], bias=False))
        model[0].weight = nn.Parameter(full)
        plan = {"column": ColwiseParallel(), "row": RowwiseParallel()}[style]
        parallelize_module(model, mesh["tp"], {"0": plan})
        fully_shard(model, mesh=mesh["dp"])
        weight = model[0].weight
        assert isinstance(weight, DTensor)
        result.append((weight.placements, weight.detach().to_local()))
    return result


def sizes_of_replica_groups(world: int) -> dict[str, int]:
    groups = {layout: layouts.replica_group(layout, world) for layout in layouts_on(world)}
    return {layout: 0 if group is None else group.size() for layout, group in groups.items()}


# In the main process


@pytest.mark.parametrize(("layout", "world"), CASES)
def test_every_rank_holds_its_part(ranks: Pool, layout: str, world: int) -> None:
    by_rank = ranks.run(world, locals_of, layout, world)
    for i, shape in enumerate(SHAPES):
        full, covered = numbered(shape), torch.zeros(shape, dtype=torch.int64)
        parts = layouts.parts(layout, world, shape)
        for rank, (rows, cols) in enumerate(parts):
            built, theirs = by_rank[rank][i]
            expected = full[rows][:, cols]
            assert torch.equal(built, expected) or built.numel() == expected.numel() == 0, f"{shape}, rank {rank}"
            assert torch.equal(built, theirs), f"{shape}, rank {rank}"
            covered[rows[:, None], cols] += 1
        groups = layouts.replicas_of(layout, world)
        assert (covered == len(groups[0])).all(), f"{shape}: not everything is held once by every set of replicas"
        assert sorted(rank for group in groups for rank in group) == list(range(world))
        for first, *others in groups:
            for rank in others:
                assert all(map(torch.equal, parts[rank], parts[first]))


@pytest.mark.parametrize(
    ("style", "layout"), [("column", "fsdp x tp same dim"), ("row", "fsdp x tp other dim")], ids=["column", "row"]
)
def test_fsdp_over_tensor_parallelism_has_the_layout(ranks: Pool, style: str, layout: str) -> None:
    models, built = ranks.run(4, locals_of_a_model, style), ranks.run(4, locals_of, layout, 4)
    for rank in range(4):
        for shape, (placements, theirs), (ours, _) in zip(SHAPES, models[rank], built[rank], strict=True):
            assert placements == LAYOUTS[layout].placements(4), shape
            assert torch.equal(ours, theirs), f"{shape}, rank {rank}: {ours.shape}, FSDP2: {theirs.shape}"


@pytest.mark.parametrize("world", [2, 4, 8])
def test_replica_groups_have_all_replicas(ranks: Pool, world: int) -> None:
    expected = {
        layout: layouts.number_of_replicas(layout, world) if LAYOUTS[layout].replicas else 0
        for layout in layouts_on(world)
    }
    assert ranks.run(world, sizes_of_replica_groups, world) == [expected] * world


@pytest.mark.parametrize("split", [layouts.noisy, layouts.on_one_replica])
def test_the_mean_of_the_replicas_gradients_is_the_gradient(split: layouts.Split) -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    gradients = split(full, 4, generator)
    torch.testing.assert_close(torch.stack(gradients).mean(0), full)
    assert (gradients[0] - gradients[1]).abs().max() > 0.5
