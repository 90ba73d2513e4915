"""What an explanation tells of one parameter, and of one batch of parameters."""

from dataclasses import dataclass

from orthon.sharding import Message


@dataclass(frozen=True)
class Row:
    """What happens to one parameter.

    Attributes:
        parameter: its name.
        shape: its shape.
        matrices: how it is read as matrices, such as "32 of 128×4096"; "" for one plain matrix, and for what is none.
        rule: the algorithm that updates it.
        update_rank: the rank of its update; None if that is not low. Of the largest matrix where they differ.
        lr_factor: by which the group's lr is multiplied. Of the largest matrix where they differ.
        state_bytes: the size of its state on this process.
        group: the name of its param group.
        reason: why it is in this group.
    """

    parameter: str
    shape: tuple[int, ...]
    matrices: str
    rule: str
    update_rank: int | None
    lr_factor: float
    state_bytes: int
    group: str
    reason: str


@dataclass(frozen=True)
class BatchRow:
    """Parameters that are updated together.

    Attributes:
        parameters: their names.
        matrices: the number of matrices; 0 for parameters that are none.
        shape: of each matrix, or of the first parameter where they are no matrices.
        rule: the algorithm.
        layout: how they lie on the processes.
        route: how several processes work on the matrices, by "owners" or on "shards"; "" where one does, or where they
            are no matrices.
        synchronization: of the gradients of the replicas: "compressed", "full", or "" where they are equal already.
        batch_bytes: the size of this process's part of the gradients, in the dtype of the parameters.
    """

    parameters: tuple[str, ...]
    matrices: int
    shape: tuple[int, ...]
    rule: str
    layout: str
    route: str
    synchronization: str
    batch_bytes: int


@dataclass(frozen=True)
class WaveRow:
    """What a wave of batches communicates and takes in a step. Their collectives are made together.

    Attributes:
        batches: those of the wave.
        messages: the collectives, in order.
        temporary_bytes: the most that this process holds at one time beside weights, gradients and state. What
            kernels and collectives use inside is not counted.
    """

    batches: tuple[BatchRow, ...]
    messages: tuple[Message, ...]
    temporary_bytes: int

    @property
    def bytes(self) -> float:
        """What this process sends or receives over the wire, whichever is more."""
        return max(sum(message.sent for message in self.messages), sum(message.received for message in self.messages))
