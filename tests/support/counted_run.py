"""Dry runs of steps at scale, of which more is counted: operations of torch, calls of functions."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import orthon
from orthon.explain.explained_step import ExplainedStep
from orthon.explain.shares import Shares
from orthon.linalg.device import meta_stands_for
from orthon.machines import MACHINES
from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding import run
from orthon.step.loss_scale import LossScale
from orthon.step.plan import AT_ONCE
from orthon.step.update import update
from tests.support.counting import MORE
from tests.support.llama import LLAMA, Layers
from tests.support.many_ranks import divided, fake_ranks

CUDA, H100 = torch.device("cuda"), MACHINES["h100"]


def _bmm(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _cholesky(a: tuple[int, ...], *_: Any, **__: Any) -> int:
    return math.prod(a) * a[-1] // 3


FLOPS = {**MORE, torch.ops.aten.bmm: _bmm, torch.ops.aten.linalg_cholesky_ex: _cholesky}
FACTORING = ("linalg_cholesky_ex", "linalg_solve_triangular")


@dataclass
class Counts:
    """What one rank does in a step.

    Attributes:
        sent: bytes.
        received: bytes.
        collectives: how many.
        operations: of torch.
        flops: of all kinds.
        factoring: those of Cholesky factorizations and triangular solves.
    """

    sent: float
    received: float
    collectives: int
    operations: int
    flops: float
    factoring: float

    @property
    def wire(self) -> float:
        """Bytes that are sent or received, whichever is more."""
        return max(self.sent, self.received)


class CountedRun(ExplainedStep):
    """A dry run of a step on H100s.

    Args:
        optimizer: over parameters without storage.
        rank: which rank; None for this one.
    """

    def __init__(self, optimizer: MixedOptimizer, *, rank: int | None = None) -> None:
        super().__init__(optimizer, H100, CUDA, rank=rank)

    @property
    def wire(self) -> float:
        """Bytes that are sent or received, whichever is more."""
        return max(sum(message.sent for message in self.messages), sum(message.received for message in self.messages))

    def make(self, device: torch.device = CUDA) -> None:
        """Make the whole step where meta stands for a device: all waves, as many at once as in a step."""
        with torch.no_grad(), meta_stands_for(device):
            for waves in self.sets:
                run(([update(b, self.states, {}, LossScale()) for b in wave] for wave in waves), at_once=AT_ONCE)

    def counted(self) -> Counts:
        """Make the whole step, and count."""
        flops = FlopCounterMode(display=False, custom_mapping=FLOPS)
        with flops, _Operations() as operations:
            self.make()
        kinds = {str(kind).split(".")[-1]: count for kind, count in flops.get_flop_counts()["Global"].items()}
        return Counts(
            sum(message.sent for message in self.messages),
            sum(message.received for message in self.messages),
            len(self.messages),
            operations.count,
            flops.get_total_flops(),
            sum(kinds.get(kind, 0) for kind in FACTORING),
        )

    def calls(self) -> int:
        """Make the step for the second time, and return how many functions Orthon's code calls."""
        self.make()
        count, root = 0, orthon.__path__[0]

        def note(frame: Any, event: str, _: object) -> None:
            nonlocal count
            if event in ("call", "c_call") and frame.f_code.co_filename.startswith(root):
                count += 1

        before = sys.getprofile()
        sys.setprofile(note)
        self.make()
        sys.setprofile(before)
        return count


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def layers_on(mesh: Mapping[str, int], layers: Layers) -> Iterator[nn.Module]:
    """Give layers in bfloat16 on one of the ranks of a mesh, see `divided`."""
    with fake_ranks(math.prod(mesh.values())):
        yield divided(mesh, layers, dtype=torch.bfloat16).layers


def run_of(layers: nn.Module, name: str, options: dict[str, Any]) -> CountedRun:
    """Return the run of this rank, with an optimizer of that name and with those options."""
    return CountedRun(_optimizer(layers, name, options))


def busiest_run(layers: nn.Module, name: str, options: dict[str, Any]) -> CountedRun:
    """Return the run of the rank that works the longest."""
    optimizer = _optimizer(layers, name, options)
    here = CountedRun(optimizer)
    rank, _ = Shares(here.batches, H100).busiest(0)
    if rank == 0:
        return here
    there = CountedRun(optimizer, rank=rank)
    assert [b.owners for b in there.batches] == [b.owners for b in here.batches], "ranks plan other waves"
    return there


def _optimizer(layers: nn.Module, name: str, options: dict[str, Any]) -> MixedOptimizer:
    made: MixedOptimizer = getattr(orthon, name)(list(layers.named_parameters()), machine="h100", **options)
    return made


@cache
def in_one_process(size: str, name: str, fraction: float, **options: Any) -> dict[str, Counts]:
    """Return what the update of each matrix of a layer takes in one process."""
    found = {}
    for matrix, (fan_in, fan_out) in LLAMA[size].shapes.items():
        param = nn.Parameter(torch.empty(fan_out, fan_in, dtype=torch.bfloat16, device="meta"))
        found[matrix] = CountedRun(
            getattr(orthon, name)([param], rank_fraction=fraction, machine="h100", **options)
        ).counted()
    return found
