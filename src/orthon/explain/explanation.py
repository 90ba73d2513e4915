"""An explanation: what an optimizer does, as values that print as tables."""

from dataclasses import dataclass

from orthon.explain.rows import BatchRow, Row, WaveRow
from orthon.explain.tables import communication_table, memory_line, parameter_table
from orthon.sharding import Message


@dataclass(frozen=True)
class Explanation:
    """What an optimizer does with each parameter, and what a step communicates and takes; prints as tables.

    Parameters whose names differ only in numbers, and that have all else in common, share a printed line.

    Attributes:
        rows: one for each parameter.
        waves: one for each wave of batches, in the order of a step.
        temporary_bytes: the most that this process holds at one time in a step, beside weights, gradients and state.
            It is what the largest wave takes, or the largest that are under way together where processes communicate.
            The first step, which makes the state, may take more.
    """

    rows: tuple[Row, ...]
    waves: tuple[WaveRow, ...] = ()
    temporary_bytes: int = 0

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
        if self.batches:
            parts.append(memory_line(self.batches, self.temporary_bytes))
        return "\n\n".join(parts)
