"""What a step of Dion communicates and computes, counted, against the formulas of the documentation."""

import math
import time
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import orthon
from orthon import Dion
from orthon.algorithms import LowRank
from orthon.explain.temporaries import Temporaries
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on
from tests.support.counting import MORE, Counted, counting, triangle
from tests.support.short_run import marked, one_of_each

COUNT = 3  # matrices, which are one batch
SHAPES = [(192, 192), (192, 384), (384, 192)]
OPTIONS: dict[str, dict[str, Any]] = {
    "rank 1/4": {},
    "rank 1/16": {"rank_fraction": 1 / 16},
    "two power iterations": {"power_iterations": 2, "rank_fraction": 1 / 8},
    "orthonormalize": {"right_factor": "orthonormalize", "rank_fraction": 1 / 8},
}


def on_this_rank(layout: str, shape: tuple[int, int], options: dict[str, Any]) -> dict[str, Any]:
    """Make three steps; count collectives and operations of the last, and what `explain` says of it."""
    world = dist.get_world_size()
    kind = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    full = [torch.randn(*shape, generator=generator) for _ in range(COUNT)]
    named = [(f"w{i}", nn.Parameter(layouts.build(layout, world, start))) for i, start in enumerate(full)]
    group = layouts.replica_group(layout, world) if kind.replicas else None
    optimizer = Dion(named, nonfinite="skip", replicas=group, sync_gradients=kind.compressed, **options)
    for step in range(3):
        for (_, param), start in zip(named, full, strict=True):
            param.grad = layouts.build(layout, world, start + step)
        if step == 1:
            flops = FlopCounterMode(display=False, custom_mapping=MORE)
            with flops, counting() as calls:
                optimizer.step()
        else:
            optimizer.step()
    explained = [message for batch in orthon.explain(optimizer).batches for message in batch.messages]
    return {
        # The first is the answer to whether all gradients are finite.
        "calls": calls[1:] if world > 1 and layout != "unaware" else calls,
        "explained": [(message.kind, message.ranks, message.numbers) for message in explained],
        "flops": flops.get_total_flops(),
    }


def memory(options: dict[str, Any]) -> tuple[list[int], orthon.Explanation]:
    """Count what steps take of this rank beside weights, gradients and state, and what `explain` says."""
    world = dist.get_world_size()
    shapes = [(64, 96)] * 3 + [(96, 96)] * 2 + [(128, 64)]
    full = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    named = [(f"w{i}", nn.Parameter(layouts.build("fsdp 0", world, start))) for i, start in enumerate(full)]
    optimizer = Dion(named, **options)
    for (_, param), start in zip(named, full, strict=True):
        param.grad = layouts.build("fsdp 0", world, start)
    for _ in range(2):
        optimizer.step()
    taken = []
    for _ in range(4):
        with Temporaries() as temporaries:
            optimizer.step()
            time.sleep(0.01)  # gloo's threads may hold what they have sent a little longer
        taken.append(temporaries.bytes)
    return taken, orthon.explain(optimizer)


def formula(layout: str, world: int, shape: tuple[int, int], options: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return the collectives of a batch, as docs/communication.md states them."""
    kind = LAYOUTS[layout]
    r = LowRank().update_rank(shape, {"rank_fraction": 0.25, "rank_multiple_of": 1} | options)
    orthonormal = "right_factor" in options
    iterations = options.get("power_iterations", 1)
    left = 1 if shape[0] > shape[1] else 0  # the dim to which P belongs
    cuts: list[list[int]] = [[], []]  # sizes of the mesh axes that cut rows and columns
    copies: list[int] = []
    averaged: list[int] = []
    for size, dim, axis in zip(kind.meshes[world], kind.dims, kind.axes, strict=True):
        if dim is not None:
            cuts[dim].append(size)
        elif kind.compressed and axis == kind.replicas:
            averaged.append(size)
        elif not kind.plain or kind.replicas:
            copies.append(size)
    local = [shape[dim] // math.prod(cuts[dim]) for dim in (0, 1)]
    messages: list[tuple[str, int, int]] = []

    def lines(*axes: list[int]) -> list[int]:
        """Return over how many ranks each collective runs: all at once, or along one axis after the other."""
        found = [size for each in axes for size in each if size > 1]
        return [world] if len(found) > 1 and math.prod(found) == world else found

    def sums(numbers: list[int], *axes: list[int]) -> None:
        messages.extend(("sum", size, COUNT * number) for number in numbers for size in lines(*axes))

    def scatter(numbers: int, *axes: list[int]) -> None:
        whole = COUNT * numbers
        for size in lines(*axes):
            messages.append(("scatter", size, whole))
            whole //= size

    def gather(numbers: int, *axes: list[int]) -> None:
        part = COUNT * numbers // math.prod(lines(*axes))
        for size in reversed(lines(*axes)):
            part *= size
            messages.append(("gather", size, part))

    if averaged and iterations * sum(local) * r >= math.prod(local):  # cheaper to average the gradients
        sums([math.prod(local)], averaged)
        copies, averaged = copies + averaged, []
    a, c = local[left], local[1 - left]
    shared = copies if orthonormal or 2 * a > 300 else []
    if math.prod(cuts[left]) > 1 and r > a:  # Q is spread
        gather(c * r, cuts[left])
    for _ in range(iterations):
        scatter(a // math.prod(copies) * r, cuts[1 - left], averaged)
        sums([r, *[triangle(r)] * 3], cuts[left], copies, cuts[1 - left], averaged)
        gather(a * r, copies, cuts[1 - left], averaged)
        scatter(c // math.prod(shared) * r, cuts[left], averaged)
        sums([r, *[triangle(r)] * 3] if orthonormal else [r, r], cuts[1 - left], shared, cuts[left], averaged)
        gather(c * r, shared, cuts[left], averaged)
    if orthonormal:
        sums([r * r], cuts[1 - left], shared, cuts[left], averaged)
    return messages


# In the order of world sizes, since another one costs a new process group.
CASES = [case for case in product((2, 4, 8), LAYOUTS, SHAPES, OPTIONS) if case[1] in layouts_on(case[0])]
SHORT = one_of_each(CASES)


def test_the_short_table_has_every_value() -> None:
    for i, values in enumerate([{2, 4, 8}, LAYOUTS.keys(), set(SHAPES), OPTIONS.keys()]):
        assert {case[i] for case in SHORT} == values
    assert {case[3] for case in SHORT if case[0] == 8} == OPTIONS.keys()


@pytest.mark.parametrize(("world", "layout", "shape", "options"), marked(CASES, SHORT))
def test_costs(ranks: Pool, world: int, layout: str, shape: tuple[int, int], options: str) -> None:
    chosen = OPTIONS[options]
    results = ranks.run(world, on_this_rank, layout, shape, chosen)
    expected = formula(layout, world, shape, chosen)
    for rank, result in enumerate(results):
        assert result["calls"] == expected, f"rank {rank}: not the collectives of the formula"
        assert result["explained"] == expected, f"rank {rank}: explain does not tell the collectives of the formula"
    _check_numbers(layout, world, shape, chosen, expected)
    _check_flops(layout, world, shape, chosen, max(result["flops"] for result in results))


@pytest.mark.parametrize("rank_fraction", [0.25, 1.0])
def test_the_memory_of_batches_under_way_together(ranks: Pool, rank_fraction: float) -> None:
    for taken, explanation in ranks.run(2, memory, {"rank_fraction": rank_fraction}):
        each = sorted(batch.temporary_bytes for batch in explanation.batches)
        assert explanation.temporary_bytes == sum(each[-2:])
        assert max(taken) >= each[-1], f"steps took {taken}, and one batch alone {each[-1]}"
        assert min(taken) <= explanation.temporary_bytes, f"steps took {taken}"
        assert str(explanation).splitlines()[-2:] == [
            "",
            "memory of a step beside weights, gradients and state: at most "
            f"{explanation.temporary_bytes:,} bytes, in 3 batches of at most 36,864 bytes of gradients",
        ]


def _check_numbers(layout: str, world: int, shape: tuple[int, int], options: dict[str, Any], messages: Counted) -> None:
    """Compare with the bound: (what is local of both sides, where it is summed, + 3r)·r for each power iteration."""
    kind = LAYOUTS[layout]
    iterations = options.get("power_iterations", 1)
    r = LowRank().update_rank(shape, {"rank_fraction": 0.25, "rank_multiple_of": 1} | options)
    cut = [1, 1]
    for size, dim in zip(kind.meshes[world], kind.dims, strict=True):
        if dim is not None:
            cut[dim] *= size
    sides = sum(shape[dim] // cut[dim] for dim in (0, 1) if cut[1 - dim] > 1)
    sides += sum(shape[dim] // cut[dim] for dim in (0, 1)) if kind.compressed else 0
    copies = math.prod(size for size, dim in zip(kind.meshes[world], kind.dims, strict=True) if dim is None)
    if sides == 0 or messages[0][2] == COUNT * math.prod(shape) // math.prod(cut):
        return  # copies alone, or averaged in full: the bound speaks of factors
    numbers = sum((1.0 if kind_ == "sum" else 0.5) * n for kind_, _, n in messages) / COUNT / iterations
    bound = 1.05 * (sides + 3 * r) * r
    if len(kind.meshes[world]) > 2:  # some sums run along one axis after the other
        bound *= 1.5
    left = 1 if shape[0] > shape[1] else 0
    if cut[left] > 1 and r > shape[left] // cut[left]:  # Q is spread, and gathered once more in a step
        bound += shape[1 - left] // cut[1 - left] * r / 2 / iterations
    if copies > 1 and not kind.compressed:  # they share the orthonormalization
        bound += shape[left] // cut[left] * r / 2
    if "right_factor" in options:  # R in terms of its orthonormal factor
        bound += r * r
    assert numbers <= bound, f"{numbers:.0f} numbers for a matrix, but should be at most {bound:.0f}"


def _check_flops(layout: str, world: int, shape: tuple[int, int], options: dict[str, Any], flops: int) -> None:
    kind = LAYOUTS[layout]
    if layout == "unaware":
        return
    alone = _alone(shape, options)
    cuts = 1
    for size, dim in zip(kind.meshes[world], kind.dims, strict=True):
        cuts *= size if dim is not None else 1
    assert flops <= 1.15 * alone / cuts, f"{flops * cuts / alone:.2f} times the work of one process, divided"


def _alone(shape: tuple[int, int], options: dict[str, Any]) -> int:
    named = [(f"w{i}", nn.Parameter(torch.randn(*shape))) for i in range(COUNT)]
    optimizer = Dion(named, **options)
    for _, param in named:
        param.grad = torch.randn(*shape)
    optimizer.step()
    with FlopCounterMode(display=False, custom_mapping=MORE) as flops:
        optimizer.step()
    return int(flops.get_total_flops())
