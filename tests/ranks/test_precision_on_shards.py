"""Products in other dtypes than the state's on several ranks, against one process."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from orthon import Dion
from orthon.linalg import orthonormalize, orthonormalize_on_shards
from orthon.sharding import run
from orthon.sharding.grid import make_grid
from orthon.sharding.step import Step
from orthon.testing import Pool

COLUMNS = 8


def on_shards(rows: tuple[int, ...]) -> None:
    ranks = make_grid(init_device_mesh("cpu", (dist.get_world_size(),)), None).along([0])
    B = torch.randn(3, sum(rows), COLUMNS, generator=torch.Generator().manual_seed(0))
    B[1, :, 1::2] = B[1, :, ::2]
    B[2] *= 1e-30
    before = sum(rows[: dist.get_rank()])
    mine = slice(before, before + rows[dist.get_rank()])

    def compute() -> Step[None]:
        whole = orthonormalize(B.clone(), precision="bf16x3")
        P = yield from orthonormalize_on_shards(B[:, mine].clone(), ranks, precision="bf16x3")
        assert torch.equal(P.live, whole.live), f"{rows}: {P.live} should be {whole.live}"
        error = (P.vectors - whole.vectors[:, mine]).abs().max() if P.vectors.numel() else 0.0
        assert error < 1e-4, f"{rows}: off by {error:.1e}"

    run([[compute()]], at_once=1)


@pytest.mark.parametrize("rows", [(20, 20), (33, 7), (40, 0)], ids=str)
def test_shards_give_what_one_process_does(ranks: Pool, rows: tuple[int, ...]) -> None:
    ranks.run(2, on_shards, rows)


def steps_of_dion(placement: str, shape: tuple[int, int]) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    placements = {"rows": [Shard(0)], "columns": [Shard(1)], "copies": [Replicate()]}[placement]
    draw = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(shape, generator=draw) for _ in range(4))
    alone, spread = nn.Parameter(start.clone()), nn.Parameter(distribute_tensor(start.clone(), mesh, placements))
    options = {"product_dtype": torch.bfloat16, "lr": 0.1}
    optimizers = [Dion([("w", param)], **options) for param in (alone, spread)]
    for gradient in gradients:
        alone.grad, spread.grad = gradient, distribute_tensor(gradient, mesh, placements)
        for optimizer in optimizers:
            optimizer.step()
    moved = alone.detach() - start
    error = (spread.detach().full_tensor() - alone.detach()).norm() / moved.norm()
    assert error < 0.02, f"{placement}, {shape}: off by {error:.1e} of what the weights have moved by"
    assert optimizers[1].state[spread]["momentum"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(33, 20), (20, 33)], ids=str)
@pytest.mark.parametrize("placement", ["rows", "columns", "copies"])
def test_large_products_in_bfloat16(ranks: Pool, placement: str, shape: tuple[int, int]) -> None:
    ranks.run(2, steps_of_dion, placement, shape)
