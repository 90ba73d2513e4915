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
from orthon.sharding import Extent, Layout, deal
from orthon.sharding.grid import Grid
from tests.ranks import layouts
from tests.ranks.layouts import LAYOUTS, layouts_on
from tests.ranks.pool import Pool
from tests.ranks.test_costs import MORE, counting

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
    """Return the collectives of a batch, as docs/design.md states them."""
    kind = LAYOUTS[layout]
    sizes = kind.meshes[world]
    place = layouts.coordinates(layout, world)[rank]
    axes = range(len(sizes))
    cut = {dim: [a for a in axes if kind.dims[a] == dim and sizes[a] > 1] for dim in (0, 1)}
    averaged = [a for a in axes if kind.compressed and kind.axes[a] == kind.replicas]
    copies = [a for a in axes if kind.dims[a] is None and sizes[a] > 1 and (not kind.plain or kind.replicas)]
    local = [shape[dim] // math.prod(sizes[a] for a in cut[dim]) for dim in (0, 1)]
    name = RULES[rule][0]
    messages: Counted = []

    def lines(where: list[int]) -> list[int]:
        found = [sizes[a] for a in where]
        return [world] if len(found) > 1 and math.prod(found) == world else found

    if averaged and "random" not in rule:  # nothing smaller than the gradient would do
        messages += [("sum", size, COUNT * math.prod(local)) for size in lines(averaged)]
        averaged = []
    part, turned = list(local), name == "Dion2" and shape[0] > shape[1]
    side = 1 if turned else 0  # of which Dion2 takes a quarter
    if name == "Dion2":
        if "random" not in rule:
            messages += [("sum", size, COUNT * local[side]) for size in lines(cut[1 - side])]
        if "random" not in rule and "local" not in rule and cut[side]:
            part_size = COUNT * shape[side] // math.prod(lines(cut[side]))
            for size in reversed(lines(cut[side])):
                part_size *= size
                messages.append(("gather", size, part_size))
        part[side] //= 4
    if rule == "muon on shards":
        short = shape[1] if cut[0] else shape[0]
        mine = [j for j in range(COUNT) if all(_place(j, sizes, axes, layout)[a] == place[a] for a in copies)]
        triangle = _triangle(short)
        for _ in range(2):  # the first step, and the other two together
            pass
        for size in lines(cut[0] or cut[1]):
            messages += [("sum", size, len(mine))] + [("sum", size, len(mine) * triangle)] * 2
    else:
        held = [j for j in range(COUNT)]
        places = [_place(j, sizes, axes, layout) for j in range(COUNT)]
        numbers = math.prod(part)
        sending = [j for j in held if all(places[j][a] == place[a] for a in copies if a not in averaged)]
        if averaged:
            messages += [("scatter", size, len(sending) * numbers) for size in lines(averaged)]
        held = [j for j in sending if all(places[j][a] == place[a] for a in averaged)]
        order = (
            [*reversed(cut[side]), *cut[1 - side]]
            if kind.inner_first
            else [*reversed(cut[side]), *reversed(cut[1 - side])]
        )
        if kind.inner_first:
            order = [*cut[side], *cut[1 - side]]
        back = []
        for axis in order:
            mine = [j for j in held if places[j][axis] == place[axis]]
            message = ("scatter", sizes[axis], max(len(held) * numbers, len(mine) * numbers * sizes[axis]))
            messages.append(message)
            back.append(message)
            held, numbers = mine, numbers * sizes[axis]
        messages += reversed(back)
    gathered = COUNT * math.prod(part) // math.prod(lines(copies))
    shares = [len([j for j in range(COUNT) if True])]
    del gathered, shares
    messages += _gathers(layout, world, sizes, copies, place, math.prod(part), lines(copies))
    if name == "NorMuon":
        messages += [("sum", size, COUNT * local[0]) for size in lines(cut[1])]
        messages += [("sum", size, COUNT * 2) for size in lines(cut[0])]
    return messages
