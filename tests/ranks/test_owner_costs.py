"""What rules for whole matrices communicate and compute, counted, against the formulas of the documentation."""

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import orthon
from orthon.linalg import polar
from orthon.sharding import Extent, Job, Layout, deal
from orthon.sharding.grid import Grid
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on
from tests.support.counting import MORE, counting, triangle
from tests.support.short_run import marked, one_of_each

COUNT = 3  # matrices, which are one batch
SHAPES = [(192, 192), (192, 384), (384, 192)]
NEWTON = {"polar": "newton_schulz", "polar_steps": 3}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "muon by owners": ("Muon", {**NEWTON, "polar_route": "owners"}),
    "muon on shards": ("Muon", {**NEWTON, "polar_route": "shards"}),
    "normuon by owners": ("NorMuon", {**NEWTON, "polar_route": "owners"}),
    "dion2": ("Dion2", NEWTON),
    "dion2 local": ("Dion2", {**NEWTON, "selection": "local"}),
    "dion2 random": ("Dion2", {**NEWTON, "selection": "random"}),
}
Counted = list[tuple[str, int, int]]  # kind, ranks, numbers


def on_this_rank(layout: str, shape: tuple[int, int], rule: str) -> dict[str, Any]:
    """Make two steps; count collectives and operations of the second, and what `explain` says of it."""
    world, kind = dist.get_world_size(), LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    full = [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(COUNT)]
    named = [(f"w{i}", nn.Parameter(layouts.build(layout, world, start))) for i, start in enumerate(full)]
    group = layouts.replica_group(layout, world) if kind.replicas else None
    name, options = RULES[rule]
    optimizer = getattr(orthon, name)(
        named, nonfinite="skip", replicas=group, sync_gradients=kind.compressed, **options
    )
    for step in range(2):
        for (_, param), start in zip(named, full, strict=True):
            param.grad = layouts.build(layout, world, start + step)
        with FlopCounterMode(display=False, custom_mapping=MORE) as flops, counting() as calls:
            optimizer.step()
    explained = [message for batch in orthon.explain(optimizer).batches for message in batch.messages]
    alone = FlopCounterMode(display=False, custom_mapping=MORE)
    rows = math.ceil(min(shape) / 4) if name == "Dion2" else min(shape)
    with alone:
        polar(torch.randn(1, rows, max(shape), dtype=torch.float64), method="newton_schulz", steps=3)
    return {
        # The first is the answer to whether all gradients are finite.
        "calls": calls[1:] if layout != "unaware" else calls,
        "explained": [("scatter" if m.kind == "exchange" else m.kind, m.ranks, m.numbers) for m in explained],
        "flops": flops.get_total_flops(),
        "alone": alone.get_total_flops(),
        "routes": [batch.polar_route for batch in orthon.explain(optimizer).batches],
    }


def formula(layout: str, world: int, rank: int, shape: tuple[int, int], rule: str) -> Counted:
    """Return the collectives of a batch on one rank, as docs/communication.md states them."""
    kind, name = LAYOUTS[layout], RULES[rule][0]
    sizes, place = kind.meshes[world], layouts.coordinates(layout, world)[rank]
    axes = [a for a in range(len(sizes)) if sizes[a] > 1]
    order = axes[::-1] if kind.inner_first else axes  # in which they cut
    cut = [[a for a in order if kind.dims[a] == dim] for dim in (0, 1)]
    copies = [a for a in axes if kind.dims[a] is None and (not kind.plain or kind.replicas)]
    averaged = [a for a in copies if kind.compressed and kind.axes[a] == kind.replicas]
    local = [shape[dim] // math.prod(sizes[a] for a in cut[dim]) for dim in (0, 1)]
    # They are dealt out in turn: to ranks, or to copies whose ranks work on a matrix together.
    owner = _owners(copies if rule == "muon on shards" else axes, sizes)
    messages: Counted = []

    def lines(where: list[int]) -> list[int]:
        """Return over how many ranks each collective runs: all at once, or along one axis after the other."""
        found = [sizes[a] for a in sorted(where)]
        return [world] if len(found) > 1 and math.prod(found) == world else found

    if averaged and rule != "dion2 random":  # nothing smaller than the gradients would do
        messages += [("sum", size, COUNT * math.prod(local)) for size in lines(averaged)]
        averaged = []
    side = 1 if name == "Dion2" and shape[0] > shape[1] else 0  # of which Dion2 takes a quarter
    part = list(local)
    if name == "Dion2":
        part[side] //= 4
        if rule != "dion2 random":
            messages += [("sum", size, COUNT * local[side]) for size in lines(cut[1 - side])]
        if rule == "dion2":
            messages += _gathers([COUNT * local[side]] * math.prod(sizes[a] for a in cut[side]), lines(cut[side]))

    def mine(held: list[int], where: list[int]) -> list[int]:
        return [j for j in held if all(owner[j][a] == place[a] for a in where)]

    numbers = math.prod(part)
    sending = mine(list(range(COUNT)), [a for a in copies if a not in averaged])
    messages += [("scatter", size, len(sending) * numbers) for size in lines(averaged)]
    held = mine(sending, averaged)
    if rule == "muon on shards":
        n = shape[1] if cut[0] else shape[0]
        # Norms, and the Gram matrix once, and again after the first step.
        sums = [len(held), *[len(held) * triangle(n)] * 2]
        messages += [("sum", size, numbers) for numbers in sums for size in lines(cut[0] or cut[1])]
    else:
        back = []
        for axis in [*reversed(cut[side]), *reversed(cut[1 - side])]:
            to = [j for j in held if owner[j][axis] == place[axis]]
            messages.append(("scatter", sizes[axis], len(held) * numbers))
            back.append(("scatter", sizes[axis], len(to) * numbers * sizes[axis]))
            held, numbers = to, numbers * sizes[axis]
        messages += reversed(back)
    if copies:
        where = sorted(copies)
        shares = [0] * math.prod(sizes[a] for a in where)
        for j in range(COUNT):
            index = 0
            for a in where:
                index = index * sizes[a] + owner[j][a]
            shares[index] += math.prod(part)
        along = lines(where)
        here = [place[a] for a in where]
        if len(along) < len(where):  # all at once
            index = 0
            for a in where:
                index = index * sizes[a] + place[a]
            here = [index]
        messages += _gathers(shares, along, here)
    if name == "NorMuon":
        messages += [("sum", size, COUNT * local[0]) for size in lines(cut[1])]
        messages += [("sum", size, COUNT * 2) for size in lines(cut[0])]
    return messages


def _owners(axes: list[int], sizes: tuple[int, ...]) -> list[dict[int, int]]:
    """Return for each matrix where its owner is along the axes."""
    places = list(product(*(range(sizes[a]) for a in axes)))
    return [dict(zip(axes, places[j % len(places)], strict=True)) for j in range(COUNT)]


def _gathers(shares: list[int], along: list[int], place: list[int] | None = None) -> Counted:
    """Return the gatherings of shares, along the last axis first; each is as long as its longest share."""
    place = place or [0] * len(along)
    messages: Counted = []
    for i in reversed(range(len(along))):
        inner = math.prod(along[i + 1 :])
        start = 0
        for size, index in zip(along[:i], place[:i], strict=True):
            start = start * size + index
        start *= along[i] * inner
        blocks = [sum(shares[start + k * inner : start + (k + 1) * inner]) for k in range(along[i])]
        sums = [sum(shares[k : k + inner]) for k in range(0, len(shares), inner)]
        lines = [sums[k : k + along[i]] for k in range(0, len(sums), along[i])]
        if any(along[i] * max(line) > 1.5 * sum(line) for line in lines):  # dealt out evenly before
            messages.append(("scatter", along[i], blocks[place[i]]))
            blocks = [-(-sum(blocks) // along[i])]
        messages.append(("gather", along[i], along[i] * max(blocks)))
    return messages


def _has_one_cut_side(layout: str, world: int) -> bool:
    kind = LAYOUTS[layout]
    cut = {dim for dim, size in zip(kind.dims, kind.meshes[world], strict=True) if dim is not None and size > 1}
    return len(cut) == 1


def _is_served(world: int, layout: str, shape: tuple[int, int], rule: str) -> bool:
    return layout in layouts_on(world) and (rule != "muon on shards" or _has_one_cut_side(layout, world))


# In the order of world sizes, since another one costs a new process group.
CASES = [case for case in product((2, 4, 8), LAYOUTS, SHAPES, RULES) if _is_served(*case)]
SHORT = one_of_each(CASES)


def test_the_short_table_has_every_value() -> None:
    for i, values in enumerate([{2, 4, 8}, LAYOUTS.keys(), set(SHAPES), RULES.keys()]):
        assert {case[i] for case in SHORT} == values


@pytest.mark.parametrize(("world", "layout", "shape", "rule"), marked(CASES, SHORT))
def test_costs(ranks: Pool, world: int, layout: str, shape: tuple[int, int], rule: str) -> None:
    results = ranks.run(world, on_this_rank, layout, shape, rule)
    depends_on_data = rule in ("dion2", "dion2 random") and _is_cut(layout, world, int(shape[0] > shape[1]))
    for rank, result in enumerate(results):
        expected = formula(layout, world, rank, shape, rule)
        if depends_on_data:  # how many of the chosen rows lie where
            for seen in (result["calls"], result["explained"]):
                assert [message[:2] for message in seen] == [message[:2] for message in expected], f"rank {rank}"
            continue
        assert result["calls"] == expected, f"rank {rank}: not the collectives of the formula"
        assert result["explained"] == expected, f"rank {rank}: explain does not tell the collectives of the formula"
    if layout == "unaware":
        return
    route = "shards" if rule == "muon on shards" else "owners"
    assert results[0]["routes"] == [route]
    if route == "owners":
        most = -(-COUNT // world)
        assert max(result["flops"] for result in results) == most * results[0]["alone"]
        assert sum(result["flops"] for result in results) == COUNT * results[0]["alone"]


def _is_cut(layout: str, world: int, side: int) -> bool:
    kind = LAYOUTS[layout]
    return any(dim == side and size > 1 for dim, size in zip(kind.dims, kind.meshes[world], strict=True))


# Owners


LLAMA_8B = [(4096, 4096)] * 64 + [(1024, 4096)] * 64 + [(14336, 4096)] * 64 + [(4096, 14336)] * 32


@pytest.mark.parametrize("world", [2, 8, 24, 32])
def test_owners_are_even(world: int) -> None:
    grid = Grid(torch.arange(world), (0,), (None,))
    costs = {shape: 10.0 * min(shape) ** 2 * max(shape) for shape in set(LLAMA_8B)}
    grid._made[(0,)] = _Anyone(world)  # type: ignore[assignment]
    jobs = [
        Job(Layout((Extent(m), Extent(n)), grid, torch.device("cpu")), LLAMA_8B.count((m, n)), costs[m, n], False)
        for m, n in dict.fromkeys(LLAMA_8B)
    ]
    loads = [0.0] * world
    for job, owners in zip(jobs, deal(jobs), strict=True):
        assert len(owners) == job.count
        for owner in owners:
            loads[owner] += job.cost
    assert max(loads) <= 1.1 * sum(loads) / world


class _Anyone:
    def __init__(self, size: int) -> None:
        self.size, self.ranks = size, tuple(range(size))
