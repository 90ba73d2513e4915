"""What a plan counts, against what ranks do in a real step: operations, bytes of memory and collectives."""

from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from orthon import Dion, Dion2, Dion3, MixedOptimizer, Muon, NorMuon
from orthon.machines import MACHINES
from orthon.plan.recorder import Recorder
from orthon.plan.recording import RecordedStep
from orthon.plan.tally import Tally
from orthon.testing import Pool, layouts
from orthon.testing.layouts import LAYOUTS, layouts_on
from tests.rules_table import TAIL
from tests.support.counting import counting
from tests.support.short_run import marked, one_of_each

RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Dion by owners": (Dion, {"route": "owners"}),
    "Dion on shards": (Dion, {"route": "shards"}),
    "Dion, two orthonormal factors": (Dion, {"right_factor": "orthonormalize", "rank_fraction": 1 / 16}),
    "Dion, polar right factor": (Dion, {"right_factor": "polar", "rank_fraction": 1 / 16}),
    "Dion with a tail, by owners": (Dion, {**TAIL, "nesterov": True, "route": "owners"}),
    "Dion with a tail, on shards": (Dion, {**TAIL, "nesterov": True, "route": "shards"}),
    "Muon by owners": (Muon, {"polar_route": "owners"}),
    "Muon on shards": (Muon, {"polar_route": "shards"}),
    "NorMuon": (NorMuon, {}),
    "Dion2": (Dion2, {}),
    "Dion3": (Dion3, {}),
    "AdamW": (MixedOptimizer, {"algorithm": "adamw", "options": {}}),
}
# Where gradients are looked at, before the first wave, which is not planned by waves.
LOOKING = ("gradients", "other")

# Fewer than ranks, and some are not divisible.
SHAPES = [(64, 48)] * 5 + [(37, 50)] * 2


# Layouts of which one side alone is cut, as polar factors on shards need it.
ONE_SIDE = [name for name, kind in LAYOUTS.items() if len({dim for dim in kind.dims if dim is not None}) == 1]


def on_this_rank(layout: str, rule: str) -> dict[str, Any]:
    """Count what this rank does in a step, and what a plan says of it."""
    world, kind = dist.get_world_size(), LAYOUTS[layout]
    make, options = RULES[rule]
    generator = torch.Generator().manual_seed(0)
    full = [torch.randn(shape, generator=generator) for shape in SHAPES]
    named = [(f"w{i}", nn.Parameter(layouts.build(layout, world, start))) for i, start in enumerate(full)]
    group = layouts.replica_group(layout, world) if kind.replicas else None
    compressed = kind.compressed and rule != "AdamW"
    optimizer = make(named, replicas=group, sync_gradients=compressed, nonfinite="skip", **options)
    for step in range(3):
        for (_, param), start in zip(named, full, strict=True):
            param.grad = layouts.build(layout, world, start.roll(step, 0))
        if step < 2:
            optimizer.step()
    with Recorder() as recorder, counting() as calls:
        optimizer.step()
    planned = RecordedStep(optimizer, MACHINES["cpu"], rank=dist.get_rank())
    trials = [planned.tried(wave) for waves in planned.sets for wave in waves]
    segments = [segment for trial in trials for segment in trial.segments]
    sums: dict[str, Tally] = {}
    for segment in segments:
        for phase, tally in segment.work.items():
            sums.setdefault(phase, Tally()).add(tally)
    messages = Counter((m.kind, m.ranks, m.numbers) for segment in segments for m in segment.messages)
    # The first collective is the answer to whether all gradients are finite.
    asked = 1 if world > 1 and layout != "unaware" else 0
    return {
        "made": {phase: counted(tally) for phase, tally in recorder.taken().items() if phase not in LOOKING},
        "planned": {phase: counted(tally) for phase, tally in sums.items() if phase not in LOOKING},
        "calls": Counter(calls[asked:]),
        "messages": messages,
    }


Counts = tuple[dict[str, float], float, int, int]


def counted(tally: Tally) -> Counts:
    return tally.flops, round(tally.factoring, 3), tally.bytes, tally.launches


# In the order of world sizes, since another one costs a new process group.
CASES = [
    (world, layout, rule)
    for world, layout, rule in product((2, 4, 8), LAYOUTS, RULES)
    if layout in layouts_on(world) and (rule != "Muon on shards" or layout in ONE_SIDE)
]
SHORT = one_of_each(CASES)


@pytest.mark.parametrize(("world", "layout", "rule"), marked(CASES, SHORT))
def test_ranks_do_what_is_planned(ranks: Pool, world: int, layout: str, rule: str) -> None:
    told = ranks.run(world, on_this_rank, layout, rule)
    for rank, of_rank in enumerate(told):
        assert of_rank["made"].keys() == of_rank["planned"].keys(), f"rank {rank}: other phases"
        calls, messages = of_rank["calls"], of_rank["messages"]
        if rule in ("Dion2", "Dion3"):
            assert sum(calls.values()) == sum(messages.values()), f"rank {rank}: other collectives"
            continue
        assert calls == messages, f"rank {rank}: other collectives"
        for phase, made in of_rank["made"].items():
            assert made == of_rank["planned"][phase], f"rank {rank}, {phase}: flops, factoring, bytes, launches"
    if rule in ("Dion2", "Dion3"):
        as_planned_together(told)


def as_planned_together(told: list[dict[str, Any]]) -> None:
    """Assert that all ranks together do what is planned. Which ranks have the selected rows, no plan knows.

    Up to four ranks, each has about its share. Of eight, each has two rows of a matrix in the mean, and any number in
    one step.
    """
    all_made, all_planned = (sums(of_rank[key] for of_rank in told) for key in ("made", "planned"))
    for phase, made in all_made.items():
        # What a rank sends depends on who has the rows, and with it how it is packed.
        near = pytest.approx(all_planned[phase], rel=0.12) if phase == "communication" else all_planned[phase]
        assert made == near, f"all ranks, {phase}: flops, factoring, bytes, launches"
    for rank, of_rank in enumerate(told if len(told) <= 4 else []):
        sent, told_of = (sum(k * n for (*_, n), k in of_rank[key].items()) for key in ("calls", "messages"))
        assert sent == pytest.approx(told_of, rel=0.35), f"rank {rank}: numbers in collectives"
        planned = sums([of_rank["planned"]])
        for phase, made in sums([of_rank["made"]]).items():
            near = pytest.approx(planned[phase], rel=0.35)
            assert made == near, f"rank {rank}, {phase}: flops, factoring, bytes, launches"


def sums(tallies: Iterable[dict[str, Counts]]) -> dict[str, tuple[float, ...]]:
    """Return what ranks have counted together, by phases; flops of all dtypes."""
    found: dict[str, tuple[float, ...]] = {}
    for tally in tallies:
        for phase, (flops, *others) in tally.items():
            counts = (sum(flops.values()), *others)
            found[phase] = tuple(map(sum, zip(found.get(phase, (0,) * 4), counts, strict=True)))
    return found
