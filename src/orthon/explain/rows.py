"""What an explanation tells of one parameter, of one batch of parameters, and of one wave of batches."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from orthon.algorithms.adjusted_lr import lr_factor
from orthon.sharding import Message, local
from orthon.step.batches import PlannedBatch
from orthon.step.member import Member


@dataclass(frozen=True)
class Row:
    """What happens to one parameter.

    Attributes:
        parameter: its name.
        shape: its shape.
        matrices: how it is read as matrices, such as "32 of 128×4096"; "" for one plain matrix, and for what is none.
        rule: the algorithm that updates it.
        update_rank: the rank of its update; None if that is not low. Of the largest matrix where they differ.
        has_tail: whether the update has a tail beside that, which is of the rank that is left.
        lr_factor: by which the group's lr is multiplied. Of the largest matrix where they differ.
        state_bytes: the size of its state on this rank.
        group: the name of its param group.
        reason: why it is in this group.
    """

    parameter: str
    shape: tuple[int, ...]
    matrices: str
    rule: str
    update_rank: int | None
    has_tail: bool
    lr_factor: float
    state_bytes: int
    group: str
    reason: str

    @classmethod
    def of(cls, member: Member, state: Mapping[str, Tensor]) -> "Row":
        """Return what happens to a parameter with this rank's state of it."""
        group, rule = member.group, member.rule
        counts: Counter[tuple[int, ...]] = Counter()
        if member.matrices is not None:
            reading = member.matrices.reading
            for block in range(len(reading.blocks)):
                counts[reading.matrix(block)] += reading.count // len(reading.blocks)
        largest = max(counts, key=math.prod, default=(1, 1))
        plain = member.matrices is None or member.matrices.is_plain
        return cls(
            parameter=member.name,
            shape=member.layout.shape,
            matrices="" if plain else ", ".join(f"{count} of {'×'.join(map(str, s))}" for s, count in counts.items()),
            rule=rule.name,
            update_rank=rule.work.update_rank(largest, group) if member.matrices is not None else None,
            has_tail=member.matrices is not None and rule.work.has_tail(largest, group),
            lr_factor=lr_factor(group["adjust_lr_fn"], largest[0], largest[1]) if rule.work.takes_matrices else 1.0,
            state_bytes=sum(local(value).nbytes for value in state.values()),
            group=group.get("name", ""),
            reason=group.get("reason", "chosen by its param group"),
        )


@dataclass(frozen=True)
class BatchRow:
    """Parameters that are updated together.

    Attributes:
        parameters: their names.
        matrices: the number of matrices; 0 for parameters that are none.
        shape: of each matrix, or of the first parameter where they are no matrices.
        rule: the algorithm.
        layout: how they lie on the ranks.
        route: how several ranks work on the matrices, by "owners" or on "shards"; "" where one does, or where they
            are no matrices.
        synchronization: of the gradients of the replicas: "compressed", "full", or "" where they are equal already.
        batch_bytes: the size of this rank's part of the gradients, in the dtype of the parameters.
    """

    parameters: tuple[str, ...]
    matrices: int
    shape: tuple[int, ...]
    rule: str
    layout: str
    route: str
    synchronization: str
    batch_bytes: int

    @classmethod
    def of(cls, batch: PlannedBatch) -> "BatchRow":
        """Return what there is to tell of a batch."""
        first = batch.pieces[0]
        count = sum(piece.count for piece in batch.pieces)
        sizes = [
            piece.count * math.prod(piece.layout.shard_shape) * piece.member.param.element_size()
            for piece in batch.pieces
        ]
        return cls(
            parameters=tuple(dict.fromkeys(piece.member.name for piece in batch.pieces)),
            matrices=count if first.stack else 0,
            shape=first.layout.shape,
            rule=first.member.rule.name,
            layout=str(first.layout),
            route=batch.route if first.stack and len(batch.ranks) > 1 else "",
            synchronization=("compressed" if first.compressed else "full") if first.member.averages else "",
            batch_bytes=sum(sizes),
        )


@dataclass(frozen=True)
class WaveRow:
    """What a wave of batches communicates and takes in a step. Their collectives are made together.

    Attributes:
        batches: those of the wave.
        messages: the collectives, in order.
        temporary_bytes: the most that this rank holds at one time beside weights, gradients and state. What
            kernels and collectives use inside is not counted.
    """

    batches: tuple[BatchRow, ...]
    messages: tuple[Message, ...]
    temporary_bytes: int

    @property
    def sent(self) -> float:
        """The bytes that leave this rank."""
        return sum(message.sent for message in self.messages)

    @property
    def received(self) -> float:
        """The bytes that come to this rank."""
        return sum(message.received for message in self.messages)
