"""A step without numbers: on tensors of the device "meta", it tells what a rank would send and take."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from orthon.explain.held import Held
from orthon.explain.rows import BatchRow, WaveRow
from orthon.explain.seen import members_seen
from orthon.explain.temporaries import Temporaries
from orthon.linalg.device import meta_stands_for
from orthon.machines import Machine
from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding import Message, local, record_messages, run
from orthon.step.batches import PlannedBatch, Wave
from orthon.step.loss_scale import LossScale
from orthon.step.plan import AT_ONCE
from orthon.step.update import update


class DryRun:
    """A step of an optimizer as one of its ranks makes it.

    Args:
        optimizer: the optimizer.
        machine: for which the step is planned.
        device: on which the parameters are taken to be; None for where they are.
        rank: which rank; None for this one.

    Attributes:
        members: the parameters, without storage.
        states: of them, likewise.
        sets: the waves, in sets that the same ranks communicate about.
    """

    def __init__(
        self, optimizer: MixedOptimizer, machine: Machine, device: torch.device | None, *, rank: int | None = None
    ) -> None:
        self.members = members_seen(optimizer.members(), rank=rank, device=device)
        self.states: dict[Tensor, dict[str, Any]] = {member.param: member.new_state() for member in self.members}
        self.sets = optimizer.waves(self.members, machine=machine)
        self._skips = optimizer.nonfinite == "skip"
        self._tried: dict[Hashable, tuple[tuple[Message, ...], int]] = {}

    @property
    def batches(self) -> list[PlannedBatch]:
        """All batches."""
        return [batch for waves in self.sets for wave in waves for batch in wave]

    @property
    def messages(self) -> list[Message]:
        """The collectives, wave by wave."""
        return [message for waves in self.sets for wave in waves for message in self.tried(wave)[0]]

    def rows(self) -> tuple[list[WaveRow], int]:
        """Return a row for each wave, and the most temporary bytes at one time."""
        rows, most = [], 0
        for waves in self.sets:
            of_set = [WaveRow(tuple(map(BatchRow.of, wave)), *self.tried(wave)) for wave in waves]
            rows += of_set
            most = max(most, _under_way(of_set))
        return rows, most

    def tried(self, wave: Wave) -> tuple[tuple[Message, ...], int]:
        """Return the collectives of a wave, and the most bytes of temporaries at one time.

        Waves that communicate and take the same are tried once.
        """
        kind = tuple(map(_kind, wave))
        if kind not in self._tried:
            self._tried[kind] = self._try(wave)
        return self._tried[kind]

    def _try(self, wave: Wave) -> tuple[tuple[Message, ...], int]:
        meta = torch.device("meta")
        gates = {meta: torch.ones((), device=meta)} if self._skips else {}
        device = wave[0].pieces[0].layout.device
        with meta_stands_for(device), record_messages() as messages, Temporaries() as temporaries:
            run([[update(batch, self.states, gates, LossScale()) for batch in wave]], at_once=1)
        return tuple(messages), temporaries.bytes


def _kind(batch: PlannedBatch) -> Hashable:
    """Return a key that is the same for batches that communicate and take the same."""
    pieces = []
    for piece in batch.pieces:
        param = piece.member.param
        pieces.append((id(piece.stack), id(piece.member.layout), piece.count, param.dtype, local(param).stride()))
    # From turn to turn other ranks begin to divide work.
    turn = batch.turn % len(batch.ranks) if batch.route == "shards" else 0
    if batch.owners is None:
        return batch.kind, tuple(pieces), turn
    held = Held(batch)
    return batch.kind, tuple(pieces), turn, held.of_copies, held.by(batch.pieces[0].layout.grid.coordinate)


def _under_way(rows: list[WaveRow]) -> int:
    """Return the most temporary bytes at one time of the waves about which the same ranks communicate.

    While some wait for their collectives, others begin. Of waves without collectives, one at a time is under way.
    """
    waiting = sorted((row.temporary_bytes for row in rows if row.messages), reverse=True)[:AT_ONCE]
    alone = max((row.temporary_bytes for row in rows if not row.messages), default=0)
    return max(sum(waiting), alone + sum(waiting[: AT_ONCE - 1]))
