"""Orthonormal columns in split bfloat16 whose rows are spread over ranks, against one process."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from orthon.linalg import orthonormalize
from orthon.sharding import Ranks, run
from orthon.sharding.grid import make_grid
from orthon.sharding.step import Step
from tests.ranks.pool import Pool

COLUMNS = 8


def on_shards(rows: tuple[int, ...]) -> None:
    ranks = make_grid(init_device_mesh("cpu", (dist.get_world_size(),)), None).along([0])
    B = torch.randn(3, sum(rows), COLUMNS, generator=torch.Generator().manual_seed(0))
    B[1, :, 1::2] = B[1, :, ::2]
    B[2] *= 1e-30
    before = sum(rows[: dist.get_rank()])
    mine = slice(before, before + rows[dist.get_rank()])

    def compute() -> Step[None]:
        whole = yield from orthonormalize(B.clone(), Ranks((0,), ()), precision="bf16x3")
        P = yield from orthonormalize(B[:, mine].clone(), ranks, precision="bf16x3")
        assert torch.equal(P.live, whole.live), f"{rows}: {P.live} should be {whole.live}"
        error = (P.vectors - whole.vectors[:, mine]).abs().max() if P.vectors.numel() else 0.0
        assert error < 1e-4, f"{rows}: off by {error:.1e}"

    run([compute()], at_once=1)


@pytest.mark.parametrize("rows", [(20, 20), (33, 7), (40, 0)], ids=str)
def test_shards_give_what_one_process_does(ranks: Pool, rows: tuple[int, ...]) -> None:
    ranks.run(2, on_shards, rows)
