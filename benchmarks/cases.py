"""What is updated: the matrices of models, and the part of them that one of many ranks has."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from orthon.plan import cluster

Shape = tuple[int, int]

SIZE = 0.02  # of the weights, as in models


@dataclass(frozen=True)
class Case:
    """Matrices that one optimizer updates in one step.

    Attributes:
        name: for tables.
        shapes: of whole matrices, each (fan_out, fan_in).
        ranks: of how many ranks one is measured; each has a share of the rows, as with FSDP2. 1 has all.
    """

    name: str
    shapes: tuple[Shape, ...]
    ranks: int = 1

    @property
    def numbers(self) -> int:
        """Numbers in all matrices together, of which each rank has its share."""
        return sum(map(math.prod, self.shapes))

    def shard(self, ranks: int) -> "Case":
        """Return the share of one of so many ranks."""
        return Case(f"{self.name}, one of {ranks} ranks", self.shapes, ranks)


def gpt2(layers: int, width: int) -> tuple[Shape, ...]:
    """Return the matrices of GPT-2's layers: query-key-value, output, up and down projection."""
    return ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)) * layers


def llama_layer(width: int, kv: int, ffn: int) -> tuple[Shape, ...]:
    """Return the matrices of one layer of LLaMA-3: q, o, k, v, gate, up, down."""
    return ((width, width), (width, width), (kv, width), (kv, width), (ffn, width), (ffn, width), (width, ffn))


GPT2_SMALL = Case("GPT-2 small", gpt2(12, 768))
LLAMA_8B_LAYER = Case("LLaMA-3 8B layer", llama_layer(4096, 1024, 14336))
LLAMA_405B_LAYER = Case("LLaMA-3 405B layer", llama_layer(16384, 1024, 53248))
TINY = Case("72 of 32×32", ((32, 32),) * 72)
SMALL = Case("1000 of 128×128", ((128, 128),) * 1000)

# The same in miniature, to exercise the suites in seconds.
_MINIATURES = {
    GPT2_SMALL.shapes: gpt2(1, 64),
    LLAMA_8B_LAYER.shapes: llama_layer(32, 16, 112),
    LLAMA_405B_LAYER.shapes: llama_layer(32, 16, 104),
    TINY.shapes: ((32, 32),) * 3,
    SMALL.shapes: ((128, 128),) * 3,
    gpt2(12, 512): gpt2(1, 32),
}


def miniature(case: Case) -> Case:
    """Return a case of the same name with few and small matrices."""
    return replace(case, shapes=_MINIATURES[case.shapes])


def parameters(case: Case, *, dtype: torch.dtype, device: torch.device) -> list[nn.Parameter]:
    """Return parameters with random values and random gradients.

    Shards are DTensors, for which a process group of at least `case.ranks` ranks is needed, such as `fake_ranks`; this
    process has the first rows, the largest share.
    """
    mesh = DeviceMesh(device.type, list(range(case.ranks))) if case.ranks > 1 else None

    def random(shape: Shape) -> Tensor:
        m, n = shape
        local = torch.randn(-(-m // case.ranks), n, dtype=dtype, device=device)
        if mesh is None:
            return local
        whole = torch.Size(shape)
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=whole, stride=(n, 1))

    params = []
    for shape in case.shapes:
        param = nn.Parameter(random(shape).mul_(SIZE))
        param.grad = random(shape)
        params.append(param)
    return params


@contextmanager
def fake_ranks(ranks: int) -> Iterator[None]:
    """Make this process the first of so many ranks, of which there are no others: nothing is sent.

    What a rank computes takes its time. In place of what it would receive it gets numbers of its own, so that the
    results mean nothing.
    """
    with cluster.fake_ranks(ranks), patch.object(dist, "all_to_all_single", _exchange_with_nobody):
        yield


class _Done:
    """Of a collective."""

    def wait(self) -> None:
        """Return at once."""


def _exchange_with_nobody(output: Tensor, input: Tensor, *_: Any, **__: Any) -> _Done:
    """Fill what would be received with what would be sent; the fake group refuses who sends nothing.

    Random numbers, as they are in training: products of constants are faster.
    """
    if input.numel() == 0:
        output.normal_()
        return _Done()
    for part in torch.split(output, input.numel()):
        part.copy_(input[: part.numel()])
    return _Done()
