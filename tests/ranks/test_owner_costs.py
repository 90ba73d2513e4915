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
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on
from tests.rules_table import PAPER, TAIL
from tests.support.counting import MORE, counting, triangle
from tests.support.short_run import marked, one_of_each
from tests.support.wire import Place, Wire, exchange, side_by_side, together

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
    "dion by owners": ("Dion", {**PAPER, "route": "owners"}),
    "dion by owners, tail": ("Dion", {**TAIL, "nesterov": True, "rank_fraction": 1 / 4, "route": "owners"}),
}
BYTES = 8  # of a number: all are of float64


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
    explanation = orthon.explain(optimizer)
    return {
        # The first is the answer to whether all gradients are finite.
        "calls": calls[1:] if layout != "unaware" else calls,
        "explained": [
            Wire(m.kind, m.ranks, m.numbers, m.sent / BYTES, m.received / BYTES) for m in explanation.messages
        ],
        "flops": flops.get_total_flops(),
        "alone": alone(shape, rule),
        "routes": [batch.route for batch in explanation.batches],
    }


def alone(shape: tuple[int, int], rule: str) -> int:
    """Return the operations on one matrix in one process."""
    name, options = RULES[rule]
    if name == "Dion":
        param = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        optimizer = orthon.Dion([param], **options)
        param.grad = torch.randn_like(param)
        with FlopCounterMode(display=False, custom_mapping=MORE) as flops:
            optimizer.step()
        return int(flops.get_total_flops())
    rows = math.ceil(min(shape) / 4) if name == "Dion2" else min(shape)
    with FlopCounterMode(display=False, custom_mapping=MORE) as flops:
        polar(torch.randn(1, rows, max(shape), dtype=torch.float64), method="newton_schulz", steps=3)
    return int(flops.get_total_flops())


def formula(layout: str, world: int, rank: int, shape: tuple[int, int], rule: str) -> list[Wire]:
    """Return the collectives of a batch on one rank, as docs/communication.md states them."""
    at, name = Place(layout, world, rank, COUNT), RULES[rule][0]
    cut = at.cut
    local = [shape[dim] // at.size(cut[dim]) for dim in (0, 1)]
    messages: list[Wire] = []
    averaged = at.averaged
    if averaged and rule != "dion2 random":  # nothing smaller than the gradients would do
        messages += at.sums(COUNT * math.prod(local), averaged)
        averaged = []
    if name == "Dion":
        return messages + _dion(at, shape, local, feedback=RULES[rule][1]["residual_momentum"] is not None)
    side = 1 if name == "Dion2" and shape[0] > shape[1] else 0  # of which Dion2 takes a quarter
    part = list(local)
    if name == "Dion2":
        part[side] //= 4
        if rule != "dion2 random":
            messages += at.sums(COUNT * local[side], cut[1 - side])
        if rule == "dion2":
            messages += at.gather(COUNT * local[side], cut[side])
    numbers = math.prod(part)
    if averaged:
        sending = at.mine(range(COUNT), [a for a in at.copies if a not in averaged])
        of_copy = at.mine(sending, averaged)
        given, mine = len(sending) * numbers, len(of_copy) * numbers
        (line,) = at.lines(averaged)
        messages.append(exchange(at.size(line), given, mine, (at.size(line) - 1) * mine))
    if rule == "muon on shards":
        at.deal(at.copies)  # to copies, whose ranks work on a matrix together
        held, n = len(at.mine(range(COUNT), at.copies)), shape[1] if cut[0] else shape[0]
        # Norms, in float64 as sums of three kinds, and the Gram matrix once, and again after the first step.
        for each in (3 * held, held * triangle(n), held * triangle(n)):
            messages += at.sums(each, cut[0] or cut[1])
    else:
        there, back = at.there_and_back(numbers, [*reversed(cut[side]), *reversed(cut[1 - side])])
        messages += side_by_side(there) + side_by_side(back)
    messages += at.to_copies(numbers)
    if name == "NorMuon":
        messages += at.sums(COUNT * local[0], cut[1])
        messages += at.sums(COUNT * 2, cut[0])
    return messages


def _dion(at: Place, shape: tuple[int, int], local: list[int], *, feedback: bool) -> list[Wire]:
    """Return what Dion sends: M and Q to the owners, and Q, the update, and with feedback M back."""
    side, cut = 0 if shape[0] > shape[1] else 1, at.cut  # along which Q lies
    r = min(shape) // 4
    of_m, of_q = math.prod(local), local[side] // at.size(cut[1 - side]) * r
    there, back = at.there_and_back(of_m, [*reversed(cut[0]), *reversed(cut[1])])
    q_there, q_back = at.there_and_back(of_q, [*reversed(cut[1 - side]), *reversed(cut[side])])
    large = 2 if feedback else 1
    messages = side_by_side(there, q_there) + side_by_side(*[back] * large, q_back)
    messages += together(*[at.to_copies(of_m)] * large, at.to_copies(of_q))
    is_spread = at.size(cut[1 - side]) > 1 and r > local[1 - side]
    return messages if is_spread else messages + at.gather(COUNT * of_q, cut[1 - side])


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
        calls: list[tuple[Any, ...]] = [message[:3] for message in expected]
        explained: list[tuple[Any, ...]] = list(expected)
        if depends_on_data:  # how many of the chosen rows lie where
            for seen in (result["calls"], result["explained"]):
                assert [message[:2] for message in seen] == [message[:2] for message in expected], f"rank {rank}"
            continue
        assert result["calls"] == calls, f"rank {rank}: not the collectives of the formula"
        assert result["explained"] == explained, f"rank {rank}: explain does not tell what goes over the wire"
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
