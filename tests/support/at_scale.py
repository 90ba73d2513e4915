"""Steps of large models on many ranks, counted without numbers and without other ranks.

The fake process group stands for all ranks, and tensors are on meta. So the very code of a step runs, for any one rank.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import orthon
from orthon.linalg.device import meta_stands_for
from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding import local, on_meta, record_messages, run
from orthon.step.batches import Wave
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member
from orthon.step.plan import AT_ONCE
from orthon.step.update import update
from tests.support.counting import MORE
from tests.support.many_ranks import PLAN, fake_ranks

CUDA = torch.device("cuda")

# Layers, width, width of keys and values, width of the feed-forward part.
LLAMA = {"8B": (32, 4096, 1024, 14336), "405B": (126, 16384, 1024, 53248)}


def _bmm(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _cholesky(a: tuple[int, ...], *_: Any, **__: Any) -> int:
    return math.prod(a) * a[-1] // 3


FLOPS = {**MORE, torch.ops.aten.bmm: _bmm, torch.ops.aten.linalg_cholesky_ex: _cholesky}
FACTORING = ("linalg_cholesky_ex", "linalg_solve_triangular")


def shapes(size: str) -> dict[str, tuple[int, int]]:
    """Return the inputs and outputs of the matrices of a layer."""
    _, d, kv, ff = LLAMA[size]
    return {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d), "gate": (d, ff), "up": (d, ff), "down": (ff, d)}


class Layer(nn.Module):
    """The matrices of a layer, in bfloat16."""

    def __init__(self, size: str) -> None:
        super().__init__()
        for name, (fan_in, fan_out) in shapes(size).items():
            self.add_module(name, nn.Linear(fan_in, fan_out, bias=False, dtype=torch.bfloat16))


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


class Step:
    """A step of an optimizer on meta.

    Args:
        optimizer: over parameters on meta.
    """

    def __init__(self, optimizer: MixedOptimizer) -> None:
        self.members = [self._with_gradient(member) for member in optimizer.members()]
        self.states: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for member in self.members:
            self.states[member.param].update(member.new_state())
        self.sets = optimizer.waves(self.members)

    @staticmethod
    def _with_gradient(member: Member) -> Member:
        member.param = on_meta(member.param)
        member.grad = torch.empty_like(local(member.param))
        return member

    @property
    def waves(self) -> Iterator[Wave]:
        """All waves."""
        return (wave for waves in self.sets for wave in waves)

    @property
    def routes(self) -> set[str]:
        """The routes of all batches."""
        return {batch.route for wave in self.waves for batch in wave}

    def work(self) -> Counter[int]:
        """Return how many operations each rank has as an owner, by estimate."""
        work: Counter[int] = Counter()
        for wave in self.waves:
            for batch in wave:
                first = batch.pieces[0]
                effort = first.member.rule.work.effort("owners", first.layout, first.member.group)
                for owner in batch.owners or ():
                    work[owner] += round(effort.products)
        return work

    def make(self, device: torch.device = CUDA) -> None:
        """Make the step, where meta stands for a device."""
        with torch.no_grad(), meta_stands_for(device):
            for waves in self.sets:
                run(([update(b, self.states, {}, LossScale()) for b in wave] for wave in waves), at_once=AT_ONCE)

    def wire(self) -> float:
        """Make the step, and return the bytes that are sent or received, whichever is more."""
        with record_messages() as messages:
            self.make()
        return max(sum(message.sent for message in messages), sum(message.received for message in messages))

    def counted(self) -> Counts:
        """Make the step, and count."""
        flops = FlopCounterMode(display=False, custom_mapping=FLOPS)
        with record_messages() as messages, flops, _Operations() as operations:
            self.make()
        kinds = {str(kind).split(".")[-1]: count for kind, count in flops.get_flop_counts()["Global"].items()}
        return Counts(
            sum(message.sent for message in messages),
            sum(message.received for message in messages),
            len(messages),
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
def step_on(
    rank: int, mesh: dict[str, int], size: str, name: str, options: dict[str, Any], *, layers: int | None = None
) -> Iterator[Step]:
    """Give a step of one rank.

    Args:
        rank: the one.
        mesh: sizes of its axes: "dp" shards rows, "tp" is tensor-parallel, "replicate" has copies. "dp" is the last one
            or followed by "tp".
        size: of the model.
        name: of the optimizer.
        options: of it.
        layers: how many layers the model has; None for all.
    """
    with fake_ranks(math.prod(mesh.values()), rank):
        yield Step(_optimizer(mesh, size, name, options, layers or LLAMA[size][0]))


def _optimizer(mesh: dict[str, int], size: str, name: str, options: dict[str, Any], count: int) -> MixedOptimizer:
    with torch.device("meta"):
        layers = nn.ModuleList(Layer(size) for _ in range(count))
    devices = init_device_mesh("cpu", tuple(mesh.values()), mesh_dim_names=tuple(mesh))
    sharding = devices["replicate", "dp"] if "replicate" in mesh else devices["dp"]
    for layer in layers:
        if "tp" in mesh:
            parallelize_module(layer, devices["tp"], PLAN)
        fully_shard(layer, mesh=sharding)
    optimizer: MixedOptimizer = getattr(orthon, name)(list(layers.named_parameters()), machine="h100", **options)
    return optimizer


@contextmanager
def step_on_busiest(mesh: dict[str, int], size: str, name: str, options: dict[str, Any]) -> Iterator[Step]:
    """Give the step of the rank that has the most work as an owner."""
    with step_on(0, mesh, size, name, options) as step:
        work = step.work()
        rank = work.most_common(1)[0][0] if work else 0
        if rank == 0:
            yield step
            return
    with step_on(rank, mesh, size, name, options) as step:
        assert step.work() == work, "ranks plan other waves"
        yield step


def busiest(mesh: dict[str, int], size: str, name: str, options: dict[str, Any]) -> Counts:
    """Return the counts of the rank that has the most work as an owner."""
    with step_on_busiest(mesh, size, name, options) as step:
        return step.counted()


@cache
def in_one_process(size: str, name: str, fraction: float) -> dict[str, Counts]:
    """Return what the update of each matrix of a layer takes in one process."""
    found = {}
    for matrix, (fan_in, fan_out) in shapes(size).items():
        param = nn.Parameter(torch.empty(fan_out, fan_in, dtype=torch.bfloat16, device="meta"))
        found[matrix] = Step(getattr(orthon, name)([param], rank_fraction=fraction, machine="h100")).counted()
    return found
