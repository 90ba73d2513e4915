"""An explanation: what an optimizer does, as values that print as tables."""

from dataclasses import dataclass

from orthon.explain.rows import BatchRow, Row
from orthon.explain.tables import communication_table, memory_line, parameter_table


@dataclass(frozen=True)
class Explanation:
    """What an optimizer does with each parameter, and what a step communicates and takes; prints as tables.

    Parameters whose names differ only in numbers, and that have all else in common, share a printed line.

    Attributes:
        rows: one for each parameter.
        batches: one for each batch of parameters.
        temporary_bytes: the most that this process holds at one time in a step, beside weights, gradients and state.
            It is what the largest batch takes, or the largest that are under way together where processes communicate.
            The first step, which makes the state, may take more.
    """

    rows: tuple[Row, ...]
    batches: tuple[BatchRow, ...] = ()
    temporary_bytes: int = 0

    def __str__(self) -> str:
        parts = [parameter_table(self.rows)]
        if any(batch.messages for batch in self.batches):
            parts.append(communication_table(self.batches))
        if self.batches:
            parts.append(memory_line(self.batches, self.temporary_bytes))
        return "\n\n".join(parts)
