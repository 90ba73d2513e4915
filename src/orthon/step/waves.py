"""The batches of a step in waves: who owns which matrix, and which batches go together."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from typing import Any

from orthon.machines import Machine
from orthon.sharding import Job, Layout, deal
from orthon.step import routes
from orthon.step.batches import Piece, PlannedBatch, Wave
from orthon.step.member import Member
from orthon.step.routes import Alike, choose_routes, taken

# The part of a device's memory that one wave may take, by default.
WAVE_MEMORY = 1 / 16


def sets_of_waves(members: Iterable[Member], machine: Machine, wave_memory: float) -> list[list[Wave]]:
    """Return the parameters that have gradients in waves of batches, the same on every rank.

    Args:
        members: all parameters.
        machine: on which the ranks run.
        wave_memory: how many bytes the matrices that one rank owns may take in a wave, if it is not a single one.

    Returns:
        for each set of ranks the waves about which they communicate, in an order on which all ranks agree.
    """
    sets: defaultdict[tuple[int, ...], list[Alike]] = defaultdict(list)
    for group in _alike(members):
        sets[group.ranks].append(group)
    result = []
    for ranks in sorted(sets, key=lambda ranks: (len(ranks), ranks)):
        groups = sets[ranks]
        most = routes.cap(groups, wave_memory)
        for group in groups:
            group.cap = most
        choose_routes(groups, machine)
        owned = [group for group in groups if group.route == "owners"]
        others = [group for group in groups if group.route != "owners"]
        result.append([*_owned_waves(owned, machine, wave_memory), *_other_waves(others, machine)])
    return result


def _alike(members: Iterable[Member]) -> list[Alike]:
    alike: defaultdict[tuple[Any, ...], list[Piece]] = defaultdict(list)
    for member in members:
        if member.grad is None:
            continue
        param = member.param
        kind = id(member.group), param.dtype, member.grad.dtype, member.grad.device
        if member.matrices is None:
            # What is not a matrix may have any shape, and lie anywhere.
            alike[(*kind, member.layout.replicas.ranks)].append(Piece(member))
            continue
        for stack in member.matrices.stacks:
            # Several matrices of one parameter are a batch: their state is in one tensor, and stays there.
            together = id(param) if len(stack.numbers) > 1 else None
            if stack.numbers:
                alike[(*kind, id(stack.layout), together)].append(Piece(member, stack))
    return list(map(Alike, alike.values()))


# Owners


@dataclass(frozen=True)
class _Unit:
    """Matrices that have to be in one wave.

    Attributes:
        group: to which they belong.
        piece: that they are.
        work: on each, in seconds.
        bytes: that the owner of one takes for it.
        numbers: of one matrix.
    """

    group: Alike
    piece: Piece
    work: float
    bytes: float
    numbers: float


def _owned_waves(groups: Sequence[Alike], machine: Machine, wave_memory: float) -> Iterator[Wave]:
    """Yield waves in which every rank works on about as much.

    The longest work comes first. In a wave it goes to the rank that has the least so far (Graham, "Bounds on
    multiprocessing timing anomalies", SIAM J. Appl. Math. 17, 1969), until no more fits under the longest: what is left
    waits for the next wave. So a rank waits for others at the end of a wave as little as it would at the end of a step.
    """
    if not groups:
        return
    ranks = len(groups[0].ranks)
    units = [unit for group in groups for unit in _units(group, ranks, machine, wave_memory)]
    units.sort(key=lambda unit: -unit.work)
    loads = [0.0] * ranks  # of all waves so far
    turn = 0
    while units:
        placed, left = _filled(units, loads, wave_memory)
        wave = []
        for group in groups:
            if id(group) in placed:
                wave.append(_ordered(placed[id(group)], group.layout, turn, machine))
                turn += sum(len(owners) for _, owners in placed[id(group)])
        yield wave
        units = left


# For each group of matrices, by its id, which of them are in a wave, and their owners.
_Placed = dict[int, list[tuple[Piece, list[int]]]]


def _filled(units: Sequence[_Unit], loads: list[float], wave_memory: float) -> tuple[_Placed, list[_Unit]]:
    """Return the next wave, and the units that are left for later ones.

    Args:
        units: that are left, the longest work first.
        loads: of each rank in all waves so far, to which this one is added.
        wave_memory: bytes that an owner may take for more than one matrix.
    """
    total = sum(unit.work * unit.piece.count for unit in units)
    size = sum(unit.numbers * unit.group.dtype.itemsize * unit.piece.count for unit in units)
    # So long that small matrices fill a batch, and large ones are at least one.
    limit = max(units[0].work, total * routes.BATCH_BYTES / max(1.0, size)) * (1 + 1e-9)
    heap = [(0.0, load, rank) for rank, load in enumerate(loads)]
    heapify(heap)
    bytes_of = [0.0] * len(loads)  # what each rank takes in this wave
    placed: _Placed = defaultdict(list)
    left = []
    for unit in units:
        owners: list[int] = []
        before = heap.copy() if unit.piece.count > 1 else heap
        for _ in range(unit.piece.count):
            work, load, rank = heap[0]
            fits = work == 0 or (work + unit.work <= limit and bytes_of[rank] + unit.bytes <= wave_memory)
            if not fits and placed:
                break
            heapreplace(heap, (work + unit.work, load + unit.work, rank))
            bytes_of[rank] += unit.bytes
            owners.append(rank)
        if len(owners) == unit.piece.count:
            placed[id(unit.group)].append((unit.piece, owners))
            continue
        for rank in owners:
            bytes_of[rank] -= unit.bytes
        heap = before
        left.append(unit)
    for _, load, rank in heap:
        loads[rank] = load
    return placed, left


def _units(group: Alike, ranks: int, machine: Machine, wave_memory: float) -> Iterator[_Unit]:
    first = group.pieces[0]
    work, group_of = first.member.rule.work, first.member.group
    bytes_of_owner = work.owned_bytes(group.layout, group_of, group.dtype)
    seconds = group.work("owners", machine)
    numbers = float(math.prod(group.layout.shape))
    # Of one parameter with many matrices, some at a time.
    bytes_of_one = max(1.0, numbers * group.dtype.itemsize)
    most = ranks * max(1, int(min(wave_memory / max(1.0, bytes_of_owner), routes.BATCH_BYTES / bytes_of_one)))
    for piece in group.pieces:
        for start in range(0, piece.count, most):
            part = piece if piece.count <= most else replace(piece, first=start, length=min(most, piece.count - start))
            yield _Unit(group, part, seconds, bytes_of_owner, numbers)


def _ordered(placed: Sequence[tuple[Piece, list[int]]], layout: Layout, turn: int, machine: Machine) -> PlannedBatch:
    """Return a batch in the order in which its matrices are sent, so that they lie so in memory."""
    axes, copied = layout.joint_axes, {*layout.copied_axes, *layout.replicated_axes}

    def place(owner: int) -> tuple[int, ...]:
        found = layout.grid.coordinates(owner, axes)
        return (*(found[a] for a in axes if a in copied), *(found[a] for a in axes if a not in copied))

    pieces = sorted(placed, key=lambda each: place(each[1][0]))
    owners = [owner for _, own in pieces for owner in own]
    return PlannedBatch([piece for piece, _ in pieces], "owners", owners, turn, machine)


# Shards, and what needs no work on whole matrices


def _other_waves(groups: Sequence[Alike], machine: Machine) -> Iterator[Wave]:
    """Yield waves of batches on shards. Those that communicate go together while they are small."""
    parts = [(group.route, part) for group in groups for part in _capped(group)]
    jobs = {i: job for i, (route, part) in enumerate(parts) if (job := _joint_job(route, part)) is not None}
    owners = dict(zip(jobs, deal(list(jobs.values())), strict=True))
    wave: Wave = []
    size, turn = 0.0, 0
    for i, (route, part) in enumerate(parts):
        batch = PlannedBatch(part, route, owners.get(i), turn, machine)
        turn += sum(piece.count for piece in part)
        more = sum(taken(piece) for piece in part)
        communicates = len(batch.ranks) > 1
        if wave and (size + more > groups[0].cap or not communicates):
            yield wave
            wave, size = [], 0.0
        wave.append(batch)
        size += more
        if not communicates:
            yield wave
            wave, size = [], 0.0
    if wave:
        yield wave


def _capped(group: Alike) -> Iterator[list[Piece]]:
    pieces = group.pieces
    if pieces[0].stack is not None:
        count = -(-len(pieces) // group.most)
        for i in range(count):  # as many in each as can be
            yield pieces[i * len(pieces) // count : (i + 1) * len(pieces) // count]
        return
    batch, size = [pieces[0]], taken(pieces[0])  # of any shapes
    for piece in pieces[1:]:
        more = taken(piece)
        if size + more > group.cap:
            yield batch
            batch, size = [], 0.0
        batch.append(piece)
        size += more
    yield batch


def _joint_job(route: str, pieces: list[Piece]) -> Job | None:
    """Return the work on shards that copies divide by matrix; None if there is none."""
    first = pieces[0]
    if route != "shards" or not first.member.rule.work.copies_divide_matrices:
        return None
    effort = first.member.rule.work.effort("owners", first.layout, first.member.group)
    return Job(first.layout, sum(piece.count for piece in pieces), effort.products)
