"""What steps on several gloo ranks take of this machine's cores, on the layouts that people use, beside one process.

Every rank has one thread. The first rank also makes the step alone, in turns with the step of all, while the others
wait. So one run compares the two, whatever else the machine does.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import orthon
from benchmarks.cases import Case, gpt2
from orthon.testing import Pool, layouts

NARROW = Case("12 layers, d = 512", gpt2(12, 512))

# Names for people, the layouts of `orthon.testing`, and numbers of ranks.
WORLDS: dict[int, dict[str, str]] = {
    2: {"FSDP 2": "fsdp 0", "TP 2": "tp column", "DDP 2": "ddp"},
    4: {"FSDP 4": "fsdp 0", "HSDP 4": "hsdp", "FSDP × TP 4": "fsdp x tp other dim"},
}


@dataclass(frozen=True)
class Taken:
    """What one step took: seconds of the clock, and seconds of this process's CPU time."""

    wall: float
    cpu: float


def measured(
    pool: Pool, case: Case, world: int, *, names: tuple[str, ...], repeats: int, timeout: float
) -> list[dict[str, Any]]:
    """Return what steps of Dion at rank 1/4 take on a number of ranks.

    Args:
        pool: of worker processes.
        case: whole matrices, in float32.
        world: the number of ranks.
        names: of the layouts, keys of `WORLDS[world]`.
        repeats: of each step.
        timeout: in seconds.
    """
    lines: list[dict[str, Any]] = pool.run(world, on_this_rank, case, names, repeats, timeout=timeout)[0]
    return lines


def on_this_rank(case: Case, names: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """Measure, in a worker."""
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    full = [torch.randn(shape, generator=generator) for shape in case.shapes]
    alone = _optimizer(full, None, world).step if rank == 0 else None
    return [_line(case, name, alone, full, world, repeats) for name in names]


def _optimizer(full: list[Tensor], layout: str | None, world: int) -> orthon.Dion:
    named: list[tuple[str, Tensor]] = []
    for i, start in enumerate(full):
        whole = layout is None
        param = nn.Parameter(start.clone() if whole else layouts.build(str(layout), world, start))
        param.grad = start * 0.1 if whole else layouts.build(str(layout), world, start * 0.1)
        named.append((f"w{i}", param))
    replicas = None if layout is None else layouts.replica_group(layout, world)
    return orthon.Dion(named, replicas=replicas)


def _line(
    case: Case, name: str, alone: Callable[[], object] | None, full: list[Tensor], world: int, repeats: int
) -> dict[str, Any]:
    step = _optimizer(full, WORLDS[world][name], world).step
    one, together = [], []
    for repeat in range(-1, repeats):  # the first is not counted
        dist.barrier()
        if alone is not None:
            taken = _taken(alone)
            one += [taken] * (repeat >= 0)
        dist.barrier()
        taken = _taken(lambda: (step(), dist.barrier()))
        cpu = torch.tensor(taken.cpu, dtype=torch.float64)
        dist.all_reduce(cpu)
        together += [Taken(taken.wall, cpu.item())] * (repeat >= 0)
    line: dict[str, Any] = {"case": case.name, "layout": name, "ranks": world}
    line["ms"] = statistics.median(taken.wall for taken in together) * 1e3
    if one:
        pairs = list(zip(together, one, strict=True))
        line["wall_of_one_process"] = statistics.median(all_.wall / alone_.wall for all_, alone_ in pairs)
        line["cpu_of_one_process"] = statistics.median(all_.cpu / alone_.cpu for all_, alone_ in pairs)
    return line


def _taken(work: Callable[[], object]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)
