"""Parameters put into batches, the same on every rank."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from orthon.algorithms.adjusted_lr import lr_factor
from orthon.machines import MACHINES, Machine
from orthon.sharding import Layout, Stack
from orthon.step.member import Member


@dataclass(frozen=True)
class Piece:
    """What one batch has of a parameter: all of it, or some of its matrices.

    Attributes:
        member: the parameter, which has a gradient.
        stack: the matrices, for a rule that takes them.
        first: how many matrices of the stack are left out at its beginning.
        length: how many matrices of the stack there are; None for all that follow.
    """

    member: Member
    stack: Stack | None = None
    first: int = 0
    length: int | None = None

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
    def places(self) -> slice:
        """Which matrices of the stack they are."""
        return slice(self.first, None if self.length is None else self.first + self.length)

    @property
    def count(self) -> int:
        """How many matrices there are, or 1."""
        return 1 if self.stack is None else len(self.stack.numbers[self.places])


@dataclass(frozen=True)
class PlannedBatch:
    """Parameters, or matrices of some, that a rule updates together.

    Attributes:
        pieces: of the batch.
        route: how matrices are worked on, see `Work.routes`; "alone" on one rank.
        owners: for each matrix who works on the whole of it, or on shards which copy.
        turn: how many matrices batches before this one have.
        machine: on which the ranks run.
    """

    pieces: list[Piece]
    route: str = "alone"
    owners: list[int] | None = None
    turn: int = 0
    machine: Machine = MACHINES["cpu"]

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What is found about the batch in a step, and holds in the next ones. No field, so that none is shared."""
        return {}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Which ranks communicate about it."""
        return ranks_of(self.pieces[0])

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
        return lr_factor(first.member.group["adjust_lr_fn"], *first.layout.shape) if self.of_matrices else 1.0


# Batches that go together, and whose collectives are made together.
Wave = list[PlannedBatch]


def ranks_of(piece: Piece) -> tuple[int, ...]:
    """Return which ranks communicate about a piece."""
    return (piece.layout.replicas if piece.stack is None else piece.layout.everyone).ranks
