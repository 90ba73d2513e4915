"""Polar factors of matrices whose rows are spread over ranks, against one process."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from orthon.linalg import polar, polar_on_shards
from orthon.sharding import run
from orthon.sharding.grid import make_grid
from orthon.sharding.step import Step
from orthon.testing import Pool

ROWS = {  # of each rank
    2: [(6, 6), (9, 3), (12, 0)],
    4: [(3, 3, 3, 3), (5, 5, 2, 0), (0, 0, 12, 0), (1, 4, 0, 7)],
}


def on_shards(rows: tuple[int, ...]) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ranks = make_grid(mesh, None).along([0])
    for n, method, dtype in [
        (n, method, dtype)
        for n in (1, 7, 12, 20)
        for method in ("polar_express", "newton_schulz", "svd")
        for dtype in (torch.float64, torch.bfloat16)
        if dtype == torch.float64 or n <= 7  # bfloat16 fills the null directions with noise
    ]:
        U = torch.randn(3, 12, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        U[1] *= 1e-30
        mine = torch.split(U, rows, dim=1)[dist.get_rank()].to(dtype)
        keep = mine.clone()

        def compute() -> Step[None]:
            X = yield from polar_on_shards(mine, ranks, method=method, steps=8, dtype=dtype)  # noqa: B023
            expected = polar(U, method=method, steps=8)[:, sum(rows[: dist.get_rank()]) :][:, : rows[dist.get_rank()]]  # noqa: B023
            error = (X.double() - expected).abs().max() if X.numel() else 0.0
            tolerance = 1e-10 if dtype == torch.float64 else 0.15 if method == "polar_express" else 0.5  # noqa: B023
            assert error < tolerance, f"{rows}, n = {n}, {method}, {dtype}: off by {error:.1e}"  # noqa: B023

        run([[compute()]], at_once=1)
        assert torch.equal(mine, keep)


@pytest.mark.parametrize(("world", "rows"), [(world, rows) for world, each in ROWS.items() for rows in each], ids=str)
def test_shards_give_what_one_process_does(ranks: Pool, world: int, rows: tuple[int, ...]) -> None:
    ranks.run(world, on_shards, rows)
