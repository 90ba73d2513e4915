"""A step without numbers: on tensors of the device "meta", it tells what a rank would do, send and take."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from orthon.explain.held import Held
from orthon.explain.seen import members_seen
from orthon.linalg.device import meta_stands_for
from orthon.machines import Machine
from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding import Step, local
from orthon.step.batches import PlannedBatch, Wave
from orthon.step.loss_scale import LossScale
from orthon.step.update import update

T = TypeVar("T")


class DryRun(ABC, Generic[T]):
    """A step of an optimizer as one of its ranks makes it, of which each kind of wave is tried once.

    Args:
        optimizer: the optimizer.
        machine: for which the step is planned.
        device: on which the parameters are taken to be; None for where they are.
        rank: which rank; None for this one.

    Attributes:
        members: the parameters, without storage.
        states: of them, likewise.
        sets: the waves, in sets that the same ranks communicate about.
        as_usual: whether the host, where it reads values, sees usual ones. If not, it takes the longer way.
    """

    as_usual: ClassVar[bool] = False

    def __init__(
        self, optimizer: MixedOptimizer, machine: Machine, device: torch.device | None, *, rank: int | None = None
    ) -> None:
        self.members = members_seen(optimizer.members(), rank=rank, device=device)
        self.states: dict[Tensor, dict[str, Any]] = {member.param: member.new_state() for member in self.members}
        self.sets = optimizer.waves(self.members, machine=machine)
        self._skips = optimizer.nonfinite == "skip"
        self._tried: dict[Hashable, T] = {}

    @property
    def batches(self) -> list[PlannedBatch]:
        """All batches."""
        return [batch for waves in self.sets for wave in waves for batch in wave]

    def tried(self, wave: Wave) -> T:
        """Return what comes of trying a wave. Of waves that communicate and take the same, one is tried."""
        kind = tuple(map(_kind, wave))
        if kind not in self._tried:
            with meta_stands_for(wave[0].pieces[0].layout.device, as_usual=self.as_usual):
                self._tried[kind] = self.carry_out(wave)
        return self._tried[kind]

    def steps(self, wave: Wave) -> list[Step[None]]:
        """Return the steps of a wave, to be carried out once."""
        meta = torch.device("meta")
        gates = {meta: torch.ones((), device=meta)} if self._skips else {}
        return [update(batch, self.states, gates, LossScale()) for batch in wave]

    @abstractmethod
    def carry_out(self, wave: Wave) -> T:
        """Carry out the steps of a wave, and return what there is to tell of it."""


def shape_of(wave: Wave) -> Hashable:
    """Return a key that is the same for waves of matrices that are as many and lie alike, whoever works on which."""
    return tuple(map(_shape_of, wave))


def _shape_of(batch: PlannedBatch) -> Hashable:
    pieces = []
    for piece in batch.pieces:
        param = piece.member.param
        pieces.append((id(piece.stack), id(piece.member.layout), piece.count, param.dtype, local(param).stride()))
    return batch.kind, tuple(pieces)


def _kind(batch: PlannedBatch) -> Hashable:
    """Return a key that is the same for batches that communicate and take the same."""
    # From turn to turn other ranks begin to divide work.
    turn = batch.turn % len(batch.ranks) if batch.route == "shards" else 0
    if batch.owners is None:
        return _shape_of(batch), turn
    held = Held(batch)
    return _shape_of(batch), turn, held.of_copies, held.by(batch.pieces[0].layout.grid.coordinate)
