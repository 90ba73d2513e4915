"""Waves: who owns which matrix and when, so that all ranks work about equally long, within a bound of memory."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Shard

import orthon
from orthon import MatrixView
from orthon.machines import MACHINES
from orthon.sharding import Step, run
from orthon.sharding import step as scheduler
from orthon.step.batches import PlannedBatch, Wave
from orthon.step.plan import AT_ONCE
from orthon.step.routes import BATCH_BYTES, Alike
from tests.support.llama import LLAMA
from tests.support.many_ranks import fake_ranks

Shape = tuple[int, ...]
H100 = MACHINES["h100"]
# The rows and columns of all matrices.
MODELS = {
    size: [(m, n) for n, m in layers.shapes.values() for _ in range(layers.count)] for size, layers in LLAMA.items()
}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "Muon": ("Muon", {"polar_route": "owners"}),
    "Dion 1/4": ("Dion", {"route": "owners"}),
}


def sharded(shape: Shape, placement: Placement, dtype: torch.dtype) -> nn.Parameter:
    """Return a parameter without storage, with a gradient, that all ranks hold parts of."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.empty(shape, device="meta", dtype=dtype)
    parts = torch.chunk(whole, mesh.size(), dim=placement.dim) if isinstance(placement, Shard) else [whole]
    here = parts[dist.get_rank()] if dist.get_rank() < len(parts) else parts[0][:0]

    def placed(local: Tensor) -> Tensor:
        return DTensor.from_local(
            local, mesh, [placement], run_check=False, shape=torch.Size(shape), stride=whole.stride()
        )

    param = nn.Parameter(placed(here))
    param.grad = placed(here.clone())
    return param


def planned(
    rule: str,
    shapes: Sequence[Shape],
    world: int,
    *,
    rank: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    placement: Placement | None = None,
    view: MatrixView | None = None,
    **given: Any,
) -> list[Wave]:
    """Return the waves of matrices that are cut over all ranks."""
    name, options = RULES[rule]
    with fake_ranks(world, rank):
        params = [(f"w{i}", sharded(shape, placement or Shard(0), dtype)) for i, shape in enumerate(shapes)]
        groups = [{"params": params, **({} if view is None else {"view": view})}]
        optimizer = getattr(orthon, name)(groups, machine="h100", **options, **given)
        (waves,) = optimizer.waves(optimizer.members())
    return list(waves)


def seconds(batch: PlannedBatch) -> float:
    """Return how long the owner of one matrix works on it."""
    return Alike(batch.pieces).work("owners", H100)


def owned(batch: PlannedBatch) -> list[int]:
    assert batch.owners is not None
    return batch.owners


def work_of(wave: Wave, world: int) -> Tensor:
    """Return how long each rank works in a wave."""
    work = torch.zeros(world, dtype=torch.float64)
    for batch in wave:
        work.index_add_(0, torch.tensor(owned(batch)), torch.full((len(owned(batch)),), seconds(batch)).double())
    return work


def matrices(waves: Sequence[Wave]) -> Counter[tuple[str, int]]:
    """Return how often each matrix is in a wave: by the name of its parameter, and its number among the matrices."""
    found: Counter[tuple[str, int]] = Counter()
    for wave in waves:
        for batch in wave:
            for piece in batch.pieces:
                assert piece.stack is not None
                found.update((piece.member.name, number) for number in piece.stack.numbers[piece.places])
    return found


# All of the work


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("world", [2, 8, 24, 32])
def test_owners_are_even(world: int, rule: str) -> None:
    waves = planned(rule, MODELS["8B"], world)
    loads = sum((work_of(wave, world) for wave in waves), torch.zeros(world, dtype=torch.float64))
    assert loads.max() <= 1.1 * loads.mean()


def longest_first(costs: Sequence[float], world: int) -> float:
    """Return the time of all work where the longest goes to the rank that has the least, all at once."""
    loads = [0.0] * world
    for cost in sorted(costs, reverse=True):
        loads[loads.index(min(loads))] += cost
    return max(loads)


class Asked:
    """A request whose answer comes at once when all ranks have asked."""

    def __init__(self, what: object) -> None:
        self.what = what

    def answer(self) -> None: ...


class Flight:
    def __init__(self, what: object, log: list[tuple[str, Any]]) -> None:
        self._what, self._log = what, log

    def land(self) -> None:
        self._log.append(("land", self._what))


def order_of_a_step(count: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return in which order a rank sends, waits and works in a step of so many waves."""
    log: list[tuple[str, Any]] = []

    def sent(requests: list[Asked]) -> list[Flight]:
        log.extend(("send", request.what) for request in requests)
        return [Flight(request.what, log) for request in requests]

    def wave(number: int) -> Step[None]:
        yield Asked(("to owners", number))
        log.append(("work", number))
        yield Asked(("back", number))

    monkeypatch.setattr(scheduler, "sent_together", sent)
    run(([wave(number)] for number in range(count)), at_once=AT_ONCE)
    return log


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("model", "world"), [("405B", 512), ("405B", 64), ("8B", 8), ("8B", 128)], ids=lambda value: str(value)
)
def test_time_of_all_work_over_the_best_dealing(
    monkeypatch: pytest.MonkeyPatch, rule: str, model: str, world: int
) -> None:
    """Sending takes no time here, but a rank waits where others have not sent yet."""
    waves = planned(rule, MODELS[model], world)
    works = [work_of(wave, world) for wave in waves]
    clock, sent = torch.zeros(world, dtype=torch.float64), {}
    for what, which in order_of_a_step(len(waves), monkeypatch):
        if what == "work":
            clock = clock + works[which]
        elif what == "send":
            sent[which] = clock.max()
        else:
            clock = clock.clamp(min=sent[which].item())
    costs = [seconds(batch) for wave in waves for batch in wave for _ in owned(batch)]
    ratio = clock.max().item() / longest_first(costs, world)
    print(f"{rule}, {model} on {world}: {len(waves)} waves, {ratio:.2f}")
    assert ratio <= 1.3


# Each wave

MIXED = [(96, 64), (64, 96)] * 7 + [(256, 256)] * 5 + [(32, 500)] * 9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("matrices_at_a_time", "least"), [(0, 2), (1, 2), (3, 1), (1000, 1)])
def test_no_owner_takes_more_memory_than_it_may_or_one_matrix(rule: str, matrices_at_a_time: int, least: int) -> None:
    world, biggest = 8, [(256, 256)] * 40
    (wave, *_) = planned(rule, biggest, world)
    (batch,) = wave
    member = batch.pieces[0].member
    each = member.rule.work.owned_bytes(batch.pieces[0].layout, member.group, torch.bfloat16)
    memory = max(1.0, matrices_at_a_time * each)
    waves = planned(rule, MIXED + biggest, world, wave_memory=memory)
    assert len(waves) >= least
    for wave in waves:
        taken: Counter[int] = Counter()
        count: Counter[int] = Counter()
        for batch in wave:
            member = batch.pieces[0].member
            of_one = member.rule.work.owned_bytes(batch.pieces[0].layout, member.group, torch.bfloat16)
            for owner in owned(batch):
                taken[owner] += int(of_one)
                count[owner] += 1
        for owner, size in taken.items():
            assert size <= memory or count[owner] == 1


@pytest.mark.parametrize("wave_memory", [1.0, None])
@pytest.mark.parametrize("rule", RULES)
def test_every_matrix_is_in_one_wave_that_is_the_same_on_every_rank(rule: str, wave_memory: float | None) -> None:
    def summary(rank: int) -> list[list[tuple[list[str], list[int], int]]]:
        waves = planned(rule, MIXED, 4, rank=rank, wave_memory=wave_memory)
        assert matrices(waves) == {(f"w{i}", 0): 1 for i in range(len(MIXED))}
        return [[([p.member.name for p in batch.pieces], owned(batch), batch.turn) for batch in wave] for wave in waves]

    first, *others = map(summary, range(4))
    assert others == [first] * 3
    assert (len(first) > 1) == (wave_memory is not None)


@pytest.mark.parametrize("rule", RULES)
def test_many_matrices_of_one_parameter_are_divided(rule: str) -> None:
    """Experts whose rows are cut: each wave has some of them, and each owner about as many."""
    world, count = 4, 50
    shape = (count, 1024, 1024)
    waves = planned(rule, [shape], world, placement=Shard(1), view=MatrixView())
    assert matrices(waves) == {("w0", number): 1 for number in range(count)}
    at_a_time = BATCH_BYTES // (2 * 1024 * 1024)
    assert len(planned(rule, [shape], world, placement=Shard(1), view=MatrixView(), wave_memory=1.0)) == -(-count // 4)
    assert len(waves) == -(-count // (world * at_a_time))
    loads = Counter(owner for wave in waves for batch in wave for owner in owned(batch))
    assert set(loads) == set(range(world))
    assert max(loads.values()) - min(loads.values()) <= 1


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_keeps_the_order_of_owners(rule: str) -> None:
    """So that its matrices lie in memory as they are sent."""
    for wave in planned(rule, MIXED, 4):
        for batch in wave:
            assert owned(batch) == sorted(owned(batch))
            assert len(batch.pieces) == len(owned(batch))
        turns = [batch.turn for batch in wave]
        assert turns == sorted(turns)
