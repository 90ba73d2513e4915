"""How fast ranks send to each other: collectives of the kinds that a step makes, timed."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist

from orthon.machines.clock import wait
from orthon.machines.machine import Link, Machine

# Numbers of one length from all ranks, one after the other: by the name that torch 2.13 gives to it, or the one before.
gather_into: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def measured_links(machine: Machine, device: torch.device, *, quick: bool) -> Machine:
    """Return a machine with the links that collectives find. All ranks call it together.

    Ranks of one node exchange, gather and sum, all nodes at the same time. If there are several nodes, all ranks
    exchange, in which every rank sends numbers of its own. If there is one, the link between nodes stays as it is on
    GPUs; CPUs are taken to be on several nodes of one machine.

    Args:
        machine: with the number of ranks of a node.
        device: of this rank, on which the process group communicates.
        quick: few numbers.
    """
    world, here = dist.get_world_size(), machine.ranks_per_node
    starts = range(0, world, here)
    nodes = [list(range(start, min(start + here, world))) for start in starts]
    groups: list[Any] = [dist.new_group(node) for node in nodes] if len(nodes) > 1 else [dist.group.WORLD]
    mine = groups[dist.get_rank() // here]
    if dist.get_world_size(mine) > 1:
        machine = replace(machine, within_node=_link(mine, device, ("exchange", "gather", "sum"), quick=quick))
    if len(nodes) > 1:
        dist.barrier()
        machine = replace(machine, between_nodes=_link(dist.group.WORLD, device, ("exchange",), quick=quick))
        for group in groups:
            dist.destroy_process_group(group)
    elif device.type == "cpu":
        machine = replace(machine, between_nodes=machine.within_node)
    return machine


def in_common(machine: Machine) -> Machine:
    """Return the machine with the median of what all ranks have found, the same on each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return machine
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, machine)
    middle: dict[str, Any] = {}
    for field in fields(Machine):
        values = [getattr(each, field.name) for each in found]
        if isinstance(values[0], str):
            middle[field.name] = min(values)
        elif isinstance(values[0], Link):
            middle[field.name] = Link(
                statistics.median(link.bandwidth for link in values), statistics.median(link.latency for link in values)
            )
        else:
            middle[field.name] = type(values[0])(statistics.median(values))
    return Machine(**middle)


def _link(group: Any, device: torch.device, kinds: Sequence[str], *, quick: bool) -> Link:
    """Return the latency and the bandwidth of collectives, the mean of their kinds."""
    ranks = dist.get_world_size(group)
    most = (1 << 14 if quick else 1 << 20 if device.type == "cpu" else 1 << 24) * ranks  # numbers
    latencies, rates = [], []
    for kind in kinds:
        work, sent = _collective(kind, ranks, group, device)
        small = _seconds(work(ranks), group, device, quick=quick)
        large = _seconds(work(most), group, device, quick=quick)
        latencies.append(small)
        rates.append(max(large - small, 0.1 * large) / (4 * sent(most)))
    return Link(1 / statistics.mean(rates), statistics.mean(latencies))


def _collective(
    kind: str, ranks: int, group: Any, device: torch.device
) -> tuple[Callable[[int], Callable[[], object]], Callable[[int], float]]:
    """Return what makes a collective over so many numbers, and how many of these a rank sends."""

    def exchange(numbers: int) -> Callable[[], object]:
        given, came = (torch.ones(numbers, device=device) for _ in range(2))
        return lambda: dist.all_to_all_single(came, given, group=group)

    def gather(numbers: int) -> Callable[[], object]:
        given, came = torch.ones(numbers // ranks, device=device), torch.ones(numbers, device=device)
        return lambda: gather_into(came, given, group=group)

    def total(numbers: int) -> Callable[[], object]:
        x = torch.zeros(numbers, device=device)
        return lambda: dist.all_reduce(x, group=group)

    part = (ranks - 1) / ranks
    if kind == "exchange":
        return exchange, lambda numbers: part * numbers
    if kind == "gather":
        return gather, lambda numbers: part * numbers
    return total, lambda numbers: 2 * part * numbers


def _seconds(work: Callable[[], object], group: Any, device: torch.device, *, quick: bool) -> float:
    """Return the median seconds of a collective. All ranks make equally many."""
    taken = []
    for _ in range(4 if quick else 12):
        dist.barrier(group)
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])
