"""Parameters put into batches, the same on every rank, and whole matrices dealt out to owners."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch

from orthon.algorithms.lr_scale import lr_factor
from orthon.sharding import Job, Layout, Stack, deal
from orthon.step.member import Member

# One batch holds at most this many bytes of gradients, or a single parameter, and so few that its update takes at most
# twice as many bytes for what it makes and does not keep.
BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """What one batch has of a parameter: all of it, or some of its matrices.

    Attributes:
        member: the parameter, which has a gradient.
        stack: the matrices, for a rule that takes them.
    """

    member: Member
    stack: Stack | None = None

    @cached_property
    def layout(self) -> Layout:
        """How the parameter lies, or each of the matrices."""
        return self.member.layout if self.stack is None else self.stack.layout

    @cached_property
    def is_plain(self) -> bool:
        """Whether it is the parameter as it lies in memory."""
        return self.stack is None or cast(Any, self.member.matrices).is_plain

    @cached_property
    def compressed(self) -> bool:
        """Whether the rule averages over the replicas with less than the gradient."""
        return self.stack is not None and self.member.compresses(self.stack)

    @property
    def count(self) -> int:
        """How many matrices there are, or 1."""
        return 1 if self.stack is None else len(self.stack.numbers)


@dataclass(frozen=True)
class PlannedBatch:
    """Parameters, or matrices of some, that a rule updates together.

    Attributes:
        pieces: of the batch.
        owners: for each matrix who works on the whole of it, for a rule that gives each to one of the ranks.
    """

    pieces: list[Piece]
    owners: list[int] | None = None

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What is found about the batch in a step, and holds in the next ones. No field, so that none is shared."""
        return {}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Which ranks communicate about it."""
        first = self.pieces[0]
        return (first.layout.replicas if first.stack is None else first.layout.everyone).ranks

    @cached_property
    def kind(self) -> tuple[int, int]:
        """What batches that make the same collectives have in common."""
        return id(self.pieces[0].layout), id(self.pieces[0].member.group)

    @cached_property
    def is_plain(self) -> bool:
        """Whether all pieces are parameters as they lie in memory."""
        return all(piece.is_plain for piece in self.pieces)

    @cached_property
    def of_matrices(self) -> bool:
        """Whether they are matrices, all of one shape."""
        return self.pieces[0].member.rule.work.takes_matrices

    @cached_property
    def scale(self) -> float:
        """The factor of lr that follows from the shape of the matrices; 1 for what is none."""
        first = self.pieces[0]
        return lr_factor(first.member.group["lr_scale"], *first.layout.shape) if self.of_matrices else 1.0


def batches(members: Iterable[Member]) -> list[PlannedBatch]:
    """Return the parameters that have gradients in batches for the rules, the same on every rank."""
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
    parts = [part for together in alike.values() for part in _capped(together)]
    # Alone, a rank has nothing to deal out.
    jobs = {i: job for i, part in enumerate(parts) if (job := _job(part)) is not None}
    owners = dict(zip(jobs, deal(list(jobs.values())), strict=True))
    return [PlannedBatch(part, owners.get(i)) for i, part in enumerate(parts)]


def in_sets(planned: Iterable[PlannedBatch]) -> list[list[PlannedBatch]]:
    """Return batches in sets that the same ranks communicate about, in an order on which all ranks agree."""
    sets: defaultdict[tuple[int, ...], list[PlannedBatch]] = defaultdict(list)
    for batch in planned:
        sets[batch.ranks].append(batch)
    return [sets[ranks] for ranks in sorted(sets, key=lambda ranks: (len(ranks), ranks))]


def _capped(together: list[Piece]) -> Iterator[list[Piece]]:
    first = together[0]
    work, dtype = first.member.rule.work, first.member.param.dtype
    if not work.takes_matrices:  # of any shapes
        batch, size = [first], _bytes(first.layout, dtype)
        for piece in together[1:]:
            more = _bytes(piece.layout, dtype)
            if size + more > BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += more
        yield batch
        return
    taken = work.temporaries(first.layout, first.member.group, dtype)
    each = first.count * max(_bytes(first.layout, dtype), taken / 2)
    count = -(-len(together) // max(1, int(BATCH_BYTES / max(1.0, each))))
    for i in range(count):  # as many in each as can be
        yield together[i * len(together) // count : (i + 1) * len(together) // count]


def _bytes(layout: Layout, dtype: torch.dtype) -> int:
    """Return the bytes of the largest shard that a rank has."""
    return math.prod(layout.largest_shard) * dtype.itemsize


def _job(pieces: list[Piece]) -> Job | None:
    """Return the work on the matrices of a batch that is dealt out to owners; None if there is none."""
    layout, group, work = pieces[0].layout, pieces[0].member.group, pieces[0].member.rule.work
    if not work.takes_matrices or layout.everyone.size == 1:
        return None
    cost = work.cost(layout.shape, group)
    if cost is None:
        return None
    count = sum(piece.count for piece in pieces)
    return Job(layout, count, cost, is_joint=work.route(layout, count, group) == "shards")
