"""An explanation: what an optimizer does, as values that print as tables."""

from dataclasses import dataclass

from orthon.explain.rows import BatchRow, Row, WaveRow
from orthon.explain.shares import Share
from orthon.explain.tables import communication_table, memory_line, parameter_table, share_table
from orthon.sharding import Message


@dataclass(frozen=True)
class Explanation:
    """What an optimizer does with each parameter, and what a step communicates and takes; prints as tables.

    Parameters whose names differ only in numbers, and that have all else in common, share a printed line.

    Attributes:
        rows: one for each parameter.
        waves: one for each wave of batches, in the order of a step.
        temporary_bytes: the most that this rank holds at one time in a step, beside weights, gradients and state.
            It is what the largest wave takes, or the largest that are under way together where ranks communicate.
            The first step, which makes the state, may take more.
        machine: the name of the one for which the step is planned.
        here: what this rank does of the step; None if there are no parameters.
        most_work: what the rank does that works the longest. This rank's share, if no other works longer.
        most_bytes: what the rank does that sends and receives the most. This rank's share, if no other does more.
        note: what may be missing: processes that exist, and of which the optimizer does not know what they do. "" if
            nothing is.
    """

    rows: tuple[Row, ...]
    waves: tuple[WaveRow, ...] = ()
    temporary_bytes: int = 0
    machine: str = ""
    here: Share | None = None
    most_work: Share | None = None
    most_bytes: Share | None = None
    note: str = ""

    @property
    def batches(self) -> tuple[BatchRow, ...]:
        """All batches of parameters."""
        return tuple(batch for wave in self.waves for batch in wave.batches)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All collectives of a step, wave by wave."""
        return tuple(message for wave in self.waves for message in wave.messages)

    def __str__(self) -> str:
        parts = [parameter_table(self.rows)]
        if self.messages:
            parts.append(communication_table(self.waves))
            if self.here and self.most_work and self.most_bytes:
                parts.append(share_table(self.here, self.most_work, self.most_bytes, self.machine))
        if self.batches:
            parts.append(memory_line(self.batches, self.temporary_bytes))
        if self.note:
            parts.append(self.note)
        return "\n\n".join(parts)
