"""Orthonormal columns of matrices whose rows are spread over ranks, against one process."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from orthon.linalg import (
    orthonormalize,
    orthonormalize_on_shards,
    polar_columns,
    polar_columns_on_shards,
    unit_columns,
    unit_columns_on_shards,
)
from orthon.sharding import run
from orthon.sharding.grid import make_grid
from orthon.sharding.ranks import Ranks
from orthon.sharding.step import Step
from orthon.testing import Pool
from tests.support.hard_matrices import MATRICES, randn

# The sizes of a mesh and the axes that cut the rows: one line of ranks, or two.
MESHES = {"2": ((2,), [0]), "4": ((4,), [0]), "2 × 2 of 8": ((2, 2, 2), [0, 2]), "4 × 2": ((4, 2), [0, 1])}
ROWS = {2: [(24, 24), (48, 0)], 4: [(12, 12, 12, 12), (0, 30, 1, 17)], 8: [(6,) * 8, (1, 0, 9, 8, 20, 0, 10, 0)]}
NAMES = ["random", "duplicate columns", "zero columns", "half the rank", "zero", "tiny", "huge"]


def ranks_of(mesh: str) -> Ranks:
    sizes, axes = MESHES[mesh]
    return make_grid(init_device_mesh("cpu", sizes), None).along(axes)


def on_shards(mesh: str, rows: tuple[int, ...], count: int, options: dict[str, Any]) -> None:
    ranks = ranks_of(mesh)
    start = sum(rows[: ranks.index])
    mine = slice(start, start + rows[ranks.index])
    B = torch.stack([MATRICES[NAMES[i % len(NAMES)]](48, 9) for i in range(count)])
    one, one_of_unit = orthonormalize(B.clone(), **options), unit_columns(B.clone())
    one_polar = polar_columns(B, **options)

    def check(found: Any, expected: Any, what: str) -> None:
        assert torch.equal(found.live, expected.live), f"{what}: other columns live"
        error = (found.vectors - expected.vectors[:, mine]).abs().sum()
        assert error < 1e-10, f"{what}: off by {error:.1e}"

    def compute(turn: int) -> Step[None]:
        found = yield from orthonormalize_on_shards(B[:, mine].clone(), ranks, turn=turn, **options)
        check(found, one, f"orthonormalize, turn {turn}")
        polar = yield from polar_columns_on_shards(B[:, mine], ranks, turn=turn, **options)
        check(polar, one_polar, f"polar columns, turn {turn}")
        unit = yield from unit_columns_on_shards(B[:, mine].clone(), ranks)
        check(unit, one_of_unit, "unit columns")

    run(([compute(turn)] for turn in range(3)), at_once=2)


@pytest.mark.parametrize("count", [1, 3, 14])
@pytest.mark.parametrize("mesh", MESHES)
def test_shards_give_what_one_process_does(ranks: Pool, mesh: str, count: int) -> None:
    sizes, axes = MESHES[mesh]
    world = torch.Size(sizes).numel()
    for rows in ROWS[torch.Size([sizes[axis] for axis in axes]).numel()]:
        ranks.run(world, on_shards, mesh, rows, count, {})


def dealt(mesh: str, count: int) -> list[tuple[int, int, int]]:
    """Reduce and gather numbers that tell where they come from; return which matrices each turn deals to this rank."""
    ranks, k = ranks_of(mesh), 5
    places = []

    def compute(turn: int) -> Step[None]:
        x = randn(count, k) * (1 + ranks.index)
        mine = ranks.mine(count, turn=turn)
        whole = yield from ranks.reduce_matrices(x, lambda parts: parts.sum(0), turn=turn)
        expected = randn(count, k) * (ranks.size * (ranks.size + 1) // 2)
        torch.testing.assert_close(whole, expected[mine], rtol=1e-14, atol=0)
        gathered: Tensor = yield from ranks.gather_matrices(whole, count, turn=turn)
        torch.testing.assert_close(gathered, expected, rtol=1e-14, atol=0)
        places.append((turn, mine.start, mine.stop))

    run(([compute(turn)] for turn in range(ranks.size + 1)), at_once=1)
    return places


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("mesh", MESHES)
def test_every_matrix_has_one_rank(ranks: Pool, mesh: str, count: int) -> None:
    sizes, axes = MESHES[mesh]
    places = ranks.run(torch.Size(sizes).numel(), dealt, mesh, count)
    size = torch.Size([sizes[axis] for axis in axes]).numel()
    most = -(-count // size)
    for turn in range(size + 1):
        spans = {each[turn][1:] for each in places if each[turn][1] < each[turn][2]}
        assert sorted(i for start, stop in spans for i in range(start, stop)) == list(range(count))
        assert all(stop - start <= most for start, stop in spans)
