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
from orthon.explain import units
from orthon.explain.temporaries import Temporaries
from orthon.step.plan import AT_ONCE
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on
from tests.rules_table import PAPER, TAIL
from tests.support.counting import MORE, Counted, counting, triangle
from tests.support.short_run import marked, one_of_each

COUNT = 3  # matrices, which are one batch
SHAPES = [(192, 192), (192, 384), (384, 192)]
OPTIONS: dict[str, dict[str, Any]] = {
    "rank 1/4": PAPER,
    "rank 1/16": {**PAPER, "rank_fraction": 1 / 16},
    "two power iterations": {**PAPER, "power_iterations": 2, "rank_fraction": 1 / 8},
    "orthonormalize": {**PAPER, "right_factor": "orthonormalize", "rank_fraction": 1 / 8},
    "polar": {**PAPER, "right_factor": "polar", "rank_fraction": 1 / 16},
    "tail": {**TAIL, "nesterov": True, "rank_fraction": 1 / 8},
    "tail, unit columns": {**PAPER, "tail": 0.7},
    "no feedback": {**PAPER, "residual_momentum": None, "right_factor": "orthonormalize", "rank_fraction": 1 / 16},
}


def on_this_rank(layout: str, shape: tuple[int, int], options: dict[str, Any]) -> dict[str, Any]:
    """Make three steps; count collectives and operations of the last, and what `explain` says of it."""
    world = dist.get_world_size()
    kind = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    full = [torch.randn(*shape, generator=generator) for _ in range(COUNT)]
    named = [(f"w{i}", nn.Parameter(layouts.build(layout, world, start))) for i, start in enumerate(full)]
    group = layouts.replica_group(layout, world) if kind.replicas else None
    optimizer = Dion(
        named, nonfinite="skip", replicas=group, sync_gradients=kind.compressed, **{"route": "shards", **options}
    )
    for step in range(3):
        for (_, param), start in zip(named, full, strict=True):
            param.grad = layouts.build(layout, world, start + step)
        if step == 1:
            flops = FlopCounterMode(display=False, custom_mapping=MORE)
            with flops, counting() as calls:
                optimizer.step()
        else:
            optimizer.step()
    explained = orthon.explain(optimizer).messages
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


def dealing(sizes: list[int]) -> list[int]:
    """Return for each rank of a grid its place in the order of dealing: that of its digits read backwards.

    A digit is an index along an axis, or two where the size is the product of two factors.
    """
    digits = [factor for size in sizes for factor in ({4: (2, 2), 8: (2, 4)}.get(size) or (size,))]
    places = []
    for index in product(*map(range, digits)):
        place = 0
        for size, digit in reversed(list(zip(digits, index, strict=True))):
            place = place * size + digit
        places.append(place)
    return places


def formula(
    layout: str, world: int, rank: int, shape: tuple[int, int], options: dict[str, Any], *, passes: int
) -> Counted:
    """Return the collectives of a batch on one rank, as docs/communication.md states them.

    Args:
        layout: a key of `LAYOUTS`.
        world: the number of ranks.
        rank: the one.
        shape: of the matrices.
        options: of Dion.
        passes: that orthonormalizations take.
    """
    kind = LAYOUTS[layout]
    sizes, place = kind.meshes[world], layouts.coordinates(layout, world)[rank]
    r = LowRank().update_rank(shape, {"rank_fraction": 0.25, "rank_multiple_of": 1} | options)
    t = triangle(r)
    orthonormal = options["right_factor"] != "normalize"
    iterations = options.get("power_iterations", 1)
    left = 1 if shape[0] > shape[1] else 0  # the dim to which P belongs
    axes = [a for a in range(len(sizes)) if sizes[a] > 1]
    order = axes[::-1] if kind.inner_first else axes  # in which they cut
    cuts = [[a for a in order if kind.dims[a] == dim] for dim in (0, 1)]
    alike = [a for a in axes if kind.dims[a] is None]
    averaged = [a for a in alike if kind.compressed and kind.axes[a] == kind.replicas]
    copies = [a for a in alike if a not in averaged and (not kind.plain or kind.replicas)]
    local = [shape[dim] // math.prod(sizes[a] for a in cuts[dim]) for dim in (0, 1)]
    messages: Counted = []

    def lines(*groups: list[int]) -> list[tuple[int, int]]:
        """Return over how many ranks each collective runs, all at once or along one axis after the other, and where."""
        found = [(sizes[a], place[a]) for group in groups for a in group]
        if len(found) < 2 or math.prod(size for size, _ in found) != world:
            return found
        index = 0
        for size, own in found:
            index = index * size + own
        return [(world, index)]

    def sums(number: int, *groups: list[int]) -> None:
        messages.extend(("sum", size, COUNT * number) for size, _ in lines(*groups))

    def scatter(numbers: int, *groups: list[int]) -> None:
        whole = COUNT * numbers
        for size, _ in lines(*groups):
            messages.append(("exchange", size, whole))
            whole //= size

    def gather(numbers: int, *groups: list[int]) -> None:
        part = COUNT * numbers // math.prod(size for size, _ in lines(*groups))
        for size, _ in reversed(lines(*groups)):
            part *= size
            messages.append(("gather", size, part))

    def dealt(there: int, back: int, *groups: list[int]) -> None:
        """Gram matrices are added up where each is dealt to, and what is made of them is gathered."""
        along = lines(*groups)
        order = dealing([size for size, _ in along])
        mine = [COUNT // len(order) + (place < COUNT % len(order)) for place in order]
        blocks = []
        for size, index in along:
            length = len(mine) // size
            split = [mine[i * length : (i + 1) * length] for i in range(size)]
            blocks.append([sum(part) for part in split])
            mine = split[index]
        for (size, _), of_line in zip(along, blocks, strict=True):
            messages.append(("exchange", size, sum(of_line) * there))
        for (size, index), of_line in reversed(list(zip(along, blocks, strict=True))):
            if size * max(of_line) <= 1.5 * sum(of_line):
                messages.append(("gather", size, size * max(of_line) * back))
            else:  # it would be padded too much
                messages.append(("exchange", size, (size - 1) * of_line[index] * back))

    def orthonormalization(*groups: list[int]) -> None:
        if lines(*groups):
            for there, back in [(t + r, t + 2 * r), (t, t + 2 * r + 1), (t, t + r)][:passes]:
                dealt(there, back, *groups)

    # It is cheaper to average the gradients, or the tail needs their mean.
    if averaged and (options["tail"] or iterations * sum(local) * r >= math.prod(local)):
        sums(math.prod(local), averaged)
        copies, averaged = sorted(copies + averaged), []
    a, c = local[left], local[1 - left]
    # A number of R takes 2·a operations. In the time of receiving one, a rank on CPUs makes 640.
    shared = copies if orthonormal or 2 * a > 640 else []
    if cuts[left] and r > a:  # Q is spread
        gather(c * r, cuts[left])
    for _ in range(iterations):
        scatter(a // math.prod(sizes[i] for i in copies) * r, cuts[1 - left], averaged)
        orthonormalization(cuts[left], copies, cuts[1 - left], averaged)
        gather(a * r, copies, cuts[1 - left], averaged)
        scatter(c // math.prod(sizes[i] for i in shared) * r, cuts[left], averaged)
        if orthonormal:
            orthonormalization(cuts[1 - left], shared, cuts[left], averaged)
            if options["right_factor"] == "polar" and lines(cuts[1 - left], shared, cuts[left], averaged):
                dealt(r * r, r * r, cuts[1 - left], shared, cuts[left], averaged)
        else:
            sums(r, cuts[1 - left], shared, cuts[left], averaged)
        gather(c * r, shared, cuts[left], averaged)
    feedback, of_t = options["residual_momentum"] is not None, r * r * orthonormal
    if options["tail"]:
        scatter(c // math.prod(sizes[i] for i in shared), cuts[left], averaged)
        gathered = bool(lines(shared, cuts[left], averaged))  # R is not, so that it is Q T
        sums(r + gathered * of_t, cuts[1 - left], shared, cuts[left], averaged)
        gather(c, shared, cuts[left], averaged)
        of_t *= not gathered
    if orthonormal and feedback and of_t:
        sums(of_t, cuts[1 - left], shared, cuts[left], averaged)
    return messages


# In the order of world sizes, since another one costs a new process group.
CASES = [case for case in product((2, 4, 8), LAYOUTS, SHAPES, OPTIONS) if case[1] in layouts_on(case[0])]
SHORT = one_of_each(CASES)
# There are more options than layouts for 8 ranks alone.
_MET = {case[3] for case in SHORT if case[0] == 8}
SHORT += [
    next(case for case in CASES[::-1] if case[0] == 8 and case[3] == name) for name in OPTIONS if name not in _MET
]


def test_the_short_table_has_every_value() -> None:
    for i, values in enumerate([{2, 4, 8}, LAYOUTS.keys(), set(SHAPES), OPTIONS.keys()]):
        assert {case[i] for case in SHORT} == values
    assert {case[3] for case in SHORT if case[0] == 8} == OPTIONS.keys()


@pytest.mark.parametrize(("world", "layout", "shape", "options"), marked(CASES, SHORT))
def test_costs(ranks: Pool, world: int, layout: str, shape: tuple[int, int], options: str) -> None:
    chosen = OPTIONS[options]
    results = ranks.run(world, on_this_rank, layout, shape, chosen)
    for rank, result in enumerate(results):
        # The host leaves out the last pass where the factors say so. Without numbers there is nothing that says so.
        two, three = (formula(layout, world, rank, shape, chosen, passes=passes) for passes in (2, 3))
        assert result["calls"] in (two, three), f"rank {rank}: not the collectives of the formula"
        assert result["explained"] == three, f"rank {rank}: explain does not tell the collectives of the formula"
    everyones = [formula(layout, world, rank, shape, chosen, passes=3) for rank in range(world)]
    _check_numbers(layout, world, shape, chosen, everyones)
    _check_flops(layout, world, shape, chosen, max(result["flops"] for result in results))


@pytest.mark.parametrize("rank_fraction", [0.25, 1.0])
def test_the_memory_of_waves_under_way_together(ranks: Pool, rank_fraction: float) -> None:
    one_matrix_at_a_time = {"rank_fraction": rank_fraction, "route": "owners", "wave_memory": 1.0}
    for taken, explanation in ranks.run(2, memory, one_matrix_at_a_time):
        each = sorted(wave.temporary_bytes for wave in explanation.waves)
        assert len(each) >= AT_ONCE
        assert explanation.temporary_bytes == sum(each[-AT_ONCE:])
        assert max(taken) >= each[-1], f"steps took {taken}, and one wave alone {each[-1]}"
        assert min(taken) <= explanation.temporary_bytes, f"steps took {taken}"
        assert str(explanation).splitlines()[-2:] == [
            "",
            "memory of a step beside weights, gradients and state: at most "
            f"{units.size(explanation.temporary_bytes)}, in {len(explanation.batches)} batches of at most "
            f"{units.size(max(batch.batch_bytes for batch in explanation.batches))} of gradients",
        ]


def _check_numbers(
    layout: str, world: int, shape: tuple[int, int], options: dict[str, Any], everyones: list[Counted]
) -> None:
    """Compare with the bound: (what is local of both sides, where it is summed, + 3r)·r for each power iteration.

    A rank that factors more matrices than another sends more, so that the mean of the ranks counts.
    """
    messages = everyones[0]
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
    weighed = [(1.0 if kind_ == "sum" else 0.5) * n for each in everyones for kind_, _, n in each]
    numbers = sum(weighed) / len(everyones) / COUNT / iterations
    bound = 1.05 * (sides + 3 * r) * r
    if len(kind.meshes[world]) > 2:  # some sums run along one axis after the other
        bound *= 1.5
    left = 1 if shape[0] > shape[1] else 0
    if cut[left] > 1 and r > shape[left] // cut[left]:  # Q is spread, and gathered once more in a step
        bound += shape[1 - left] // cut[1 - left] * r / 2 / iterations
    if copies > 1 and not kind.compressed:  # they share the orthonormalization
        bound += shape[left] // cut[left] * r / 2
    if options["right_factor"] != "normalize":  # R in terms of its orthonormal factor
        bound += r * r
    if options.get("right_factor") == "polar":  # which is added up, and its polar factor gathered, maybe padded
        bound += 1.5 * r * r
    if options["tail"]:  # squares and factors of columns, and lengths of directions
        bound += shape[1 - left] // cut[1 - left] + r
    # What is gathered of three matrices that an even number of ranks has factored is padded to at most 1.5 times.
    bound += 0.5 * 0.5 * 3 * triangle(r) * (1 + (options["right_factor"] != "normalize"))
    assert numbers <= bound, f"{numbers:.0f} numbers for a matrix, but should be at most {bound:.0f}"


def _check_flops(layout: str, world: int, shape: tuple[int, int], options: dict[str, Any], flops: int) -> None:
    kind = LAYOUTS[layout]
    if layout == "unaware":
        return
    alone = _alone(shape, options)
    cuts = 1
    for size, dim in zip(kind.meshes[world], kind.dims, strict=True):
        cuts *= size if dim is not None else 1
    if options["tail"] and options["right_factor"] != "normalize":  # R = Q T of its columns is made by each rank
        left = 1 if shape[0] > shape[1] else 0
        r = LowRank().update_rank(shape, {"rank_multiple_of": 1} | options)
        along = math.prod(s for s, d in zip(kind.meshes[world], kind.dims, strict=True) if d == 1 - left)
        alone += COUNT * 2 * shape[1 - left] * r * r * (cuts // along - 1)
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
