"""By owners, momentum and factors are the same bits as in one process, where batches have the same shapes."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import orthon
from orthon.algorithms.dion import PAPER
from orthon.testing import Pool, layouts

# No two alike, so that each is a batch of its own in one process and on its owner.
SHAPES = [(64, 96), (96, 64), (80, 80), (33, 57), (57, 33), (16, 300)]
STEPS = 4
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
DION: dict[str, dict[str, Any]] = {
    "defaults": {},
    "the paper's": PAPER,
    "orthonormalize": {**PAPER, "right_factor": "orthonormalize"},
    "polar": {**PAPER, "right_factor": "polar"},
    "full rank": {**PAPER, "rank_fraction": 1.0},
    "three power iterations": {**PAPER, "power_iterations": 3},
    "long side": {**PAPER, "orthonormal_side": "long"},
}
AT_ONCE = 64  # numbers of 16 bits, on CPUs with the widest registers
PLACES = [(2, "fsdp 0"), (2, "fsdp 1"), (4, "fsdp 0"), (4, "fsdp 1"), (4, "fsdp x tp other dim"), (4, "hsdp")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give this process as many threads as the ranks have: with more, products are summed in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(rule: str, layout: str | None, dtype: torch.dtype, options: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Return for each matrix the whole weight and all state; without a layout those of one process."""
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, int]) -> Tensor:
        whole = torch.randn(shape, generator=generator).to(dtype)
        return whole if layout is None else layouts.build(layout, dist.get_world_size(), whole)

    params = [nn.Parameter(drawn(shape)) for shape in SHAPES]
    named = [(f"w{i}", param) for i, param in enumerate(params)]
    optimizer = getattr(orthon, rule)(named, lr=0.1, **options)
    for _ in range(STEPS):
        for param, shape in zip(params, SHAPES, strict=True):
            param.grad = drawn(shape)
        optimizer.step()
    return [{"weight": _whole(param.detach()), **_whole_state(optimizer.state[param])} for param in params]


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def _whole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: _whole(value) for key, value in state.items()}


def marked(*, options: list[str]) -> list[object]:
    """Return all places with dtypes and sets of options; those outside of the short run are marked as long."""
    table: list[object] = []
    for place, dtype, name in product(PLACES, DTYPES, options):
        is_short = place[1] == "fsdp 0" and dtype in DTYPES[:2] and name in options[:2]
        table.append(pytest.param(*place, dtype, name, marks=[] if is_short else [pytest.mark.long]))
    return table


@pytest.mark.parametrize(("world", "layout", "dtype", "options"), marked(options=list(DION)))
def test_momentum_and_right_factor_of_dion(
    ranks: Pool, world: int, layout: str, dtype: torch.dtype, options: str
) -> None:
    """The weights are equal to rounding: one process adds P Qᵀ to them in one operation, and ranks in two.

    So is in bfloat16 a momentum that fades as a whole: G is added to it number by number, and torch rounds some of them
    in another way, by where they lie in a loop over several at once.
    """
    expected = trained("Dion", None, dtype, DION[options])
    by_owners = {**DION[options], "route": "owners"}
    for rank, results in enumerate(ranks.run(world, trained, "Dion", layout, dtype, by_owners)):
        for shape, result, right in zip(SHAPES, results, expected, strict=True):
            where = f"{shape} on rank {rank}"
            for key in ("momentum", "Q"):
                if options == "defaults" and dtype == torch.bfloat16:
                    off = (result[key].double() - right[key].double()).norm() / right[key].double().norm()
                    assert off < STEPS * torch.finfo(dtype).eps, f"{key} of {where}"
                else:
                    assert torch.equal(result[key], right[key]), f"{key} of {where}"
            allowed = STEPS * torch.finfo(dtype).eps * right["weight"].abs().max().item()
            torch.testing.assert_close(result["weight"], right["weight"], rtol=0, atol=allowed, msg=f"weight {where}")


@pytest.mark.parametrize(("world", "layout", "dtype", "options"), marked(options=["Muon"]))
def test_momentum_and_weights_of_muon(ranks: Pool, world: int, layout: str, dtype: torch.dtype, options: str) -> None:
    """Where weights do not decay, and shards have as many numbers as the loops of elementwise operations take at once.

    Elsewhere torch rounds some numbers in another way, by where they lie in such a loop.
    """
    expected = trained(options, None, dtype, {"weight_decay": 0.0})
    by_owners = {"weight_decay": 0.0, "polar_route": "owners"}
    for rank, results in enumerate(ranks.run(world, trained, options, layout, dtype, by_owners)):
        for shape, result, right in zip(SHAPES, results, expected, strict=True):
            if shape[0] % world or shape[1] % world or shape[0] * shape[1] // world % AT_ONCE:
                continue
            for what, value in right.items():
                assert torch.equal(result[what], value), f"{what} of {shape} on rank {rank}"
