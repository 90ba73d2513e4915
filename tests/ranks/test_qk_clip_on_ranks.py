"""QK-clip of weights that lie on ranks, through heads as well, against one process, bit by bit."""

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from orthon import qk_clip_
from orthon.testing import Pool, RankError, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on

# heads, kv_heads, d: most cuts go through heads; of the last, some ranks have nothing.
SHAPES = [(6, 2, 4), (3, 3, 6), (4, 1, 10), (1, 1, 2)]
CASES = [(layout, world) for world in (2, 4) for layout in layouts_on(world) if not LAYOUTS[layout].compressed]


def weights(heads: int, kv_heads: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(heads)
    query, key = (torch.randn(rows * d, 7, generator=generator) for rows in (heads, kv_heads))
    return query, key, 300 * torch.rand(heads, generator=generator) + 20


# On ranks


def clipped(layout: str, world: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """This rank's parts of the clipped weights, and γ, for all shapes."""
    result = []
    for shape in SHAPES:
        query, key, logits = weights(*shape)
        query, key = (layouts.build(layout, world, weight) for weight in (query, key))
        gamma = qk_clip_(query, key, logits)
        result.append((layouts.local(query), layouts.local(key), gamma))
    return result


def clipped_biases(world: int) -> list[tuple[Tensor, Tensor]]:
    """The whole clipped biases, for all shapes."""
    mesh = init_device_mesh("cpu", (world,))
    result = []
    for shape in SHAPES:
        query, key, logits = weights(*shape)
        dtensors = [distribute_tensor(x, mesh, [Shard(0)]) for x in (query, key, query[:, 0], key[:, 0])]
        qk_clip_(dtensors[0], dtensors[1], logits, query_bias=dtensors[2], key_bias=dtensors[3])
        result.append((dtensors[2].full_tensor(), dtensors[3].full_tensor()))
    return result


def clip_partial_sums(world: int) -> None:
    query, key, logits = weights(6, 2, 4)
    partial = DTensor.from_local(key, init_device_mesh("cpu", (world,)), [Partial()])
    qk_clip_(query, partial, logits)


def clip_by_dtensor(world: int) -> None:
    query, key, logits = weights(6, 2, 4)
    qk_clip_(query, key, distribute_tensor(logits, init_device_mesh("cpu", (world,)), [Shard(0)]))


# In the main process


@pytest.mark.parametrize(("layout", "world"), CASES)
def test_every_rank_scales_its_part(ranks: Pool, layout: str, world: int) -> None:
    by_rank = ranks.run(world, clipped, layout, world)
    for i, shape in enumerate(SHAPES):
        query, key, logits = weights(*shape)
        gamma = qk_clip_(query, key, logits)
        assert (gamma < 1).any()
        for rank in range(world):
            *parts, theirs = by_rank[rank][i]
            assert torch.equal(theirs, gamma)
            for part, whole in zip(parts, (query, key), strict=True):
                expected = whole
                if not LAYOUTS[layout].plain:
                    rows, cols = layouts.parts(layout, world, (whole.shape[0], whole.shape[1]))[rank]
                    expected = whole[rows][:, cols]
                assert torch.equal(part, expected) or part.numel() == expected.numel() == 0, f"{shape}, rank {rank}"


def test_biases(ranks: Pool) -> None:
    for by_shape in ranks.run(4, clipped_biases, 4):
        for shape, (query_bias, key_bias) in zip(SHAPES, by_shape, strict=True):
            query, key, logits = weights(*shape)
            qk_clip_(query, key, logits)
            assert torch.equal(query_bias, query[:, 0])
            assert torch.equal(key_bias, key[:, 0])


def test_what_cannot_be_served(ranks: Pool) -> None:
    with pytest.raises(RankError, match="NotImplementedError: qk_clip_: key: its placement .* cannot be served"):
        ranks.run(2, clip_partial_sums, 2)
    with pytest.raises(RankError, match="ValueError: qk_clip_: max_logits should be a plain tensor .* is a DTensor"):
        ranks.run(2, clip_by_dtensor, 2)
