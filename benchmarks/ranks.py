"""Steps on several gloo ranks of this machine, with and without overlap, beside one process.

Each rank has one thread, and so has the one process: on as many cores, two ranks could at best take half of its time.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from benchmarks.cases import Case, parameters
from benchmarks.contenders import FAMILY, Contender, named
from orthon.step import plan as orthons
from orthon.testing import Pool

CONTENDERS = named(FAMILY, "Dion 1/4", "Muon", "Dion2 1/4")

# How many waves are under way: one after the other, or one computing while others communicate.
AT_ONCE = {False: 1, True: orthons.AT_ONCE}


def measured(
    pool: Pool, case: Case, *, worlds: tuple[int, ...] = (1, 2, 4), repeats: int, timeout: float
) -> Iterator[dict[str, Any]]:
    """Yield the median times of steps on each number of ranks, compared with those on one, if that is the first.

    Args:
        pool: of worker processes.
        case: whole matrices, in float32, of which each rank has a share of the rows.
        worlds: numbers of ranks.
        repeats: of each step.
        timeout: in seconds, for each number of ranks.
    """
    alone: dict[str, float] = {}
    for world in worlds:
        lines = pool.run(world, on_this_rank, case, repeats, timeout=timeout)[0]
        for line in lines:
            if world == 1:
                alone[line["contender"]] = line["ms"]
            one = alone.get(line["contender"])
            yield {**line, "of_one_process": None if one is None else line["ms"] / one}


def on_this_rank(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Measure, in a worker."""
    world = dist.get_world_size()
    torch.manual_seed(0)  # the same matrices everywhere, of which each rank keeps its rows
    lines: list[dict[str, Any]] = []
    for contender in CONTENDERS:
        seconds = _seconds(contender, case, world, repeats)
        for overlap, taken in seconds.items():
            lines.append(
                {
                    "case": case.name,
                    "contender": contender.name,
                    "ranks": world,
                    "overlap": overlap,
                    "ms": statistics.median(taken) * 1e3,
                }
            )
    return lines


def _seconds(contender: Contender, case: Case, world: int, repeats: int) -> dict[bool, list[float]]:
    """Return the seconds of each step, from when all ranks begin until all are done, without and with overlap."""
    params = parameters(case, dtype=torch.float32, device=torch.device("cpu"))
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        shared = []
        for param in params:
            assert param.grad is not None
            shared.append(nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
            shared[-1].grad = distribute_tensor(param.grad, mesh, [Shard(0)])
        params = shared
    optimizer = contender.optimizer(params)
    optimizer.step()
    taken: dict[bool, list[float]] = {overlap: [] for overlap in AT_ONCE if world > 1 or not overlap}
    for _ in range(repeats):
        for overlap, steps in taken.items():  # in turns, so that a drift of the machine meets both
            steps.append(_step_of_all(optimizer.step, world, AT_ONCE[overlap]))
    return taken


def _step_of_all(step: Callable[[], object], world: int, at_once: int) -> float:
    before, orthons.AT_ONCE = orthons.AT_ONCE, at_once
    try:
        if world > 1:
            dist.barrier()
        start = time.perf_counter()
        step()
        if world > 1:
            dist.barrier()
        return time.perf_counter() - start
    finally:
        orthons.AT_ONCE = before
