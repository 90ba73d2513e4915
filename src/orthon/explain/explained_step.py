"""What the waves of a step communicate, and how much memory they take."""

from collections.abc import Sequence

from orthon.explain.dry_run import DryRun
from orthon.explain.rows import BatchRow, WaveRow
from orthon.explain.temporaries import Temporaries
from orthon.sharding import Message, record_messages, run
from orthon.step.batches import Wave
from orthon.step.plan import AT_ONCE


class ExplainedStep(DryRun[tuple[tuple[Message, ...], int]]):
    """A dry run of which each wave tells its collectives, and the most bytes of temporaries at one time."""

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
            most = max(most, most_under_way([(row.temporary_bytes, bool(row.messages)) for row in of_set]))
        return rows, most

    def carry_out(self, wave: Wave) -> tuple[tuple[Message, ...], int]:
        """Return the collectives of a wave, and its temporary bytes."""
        with record_messages() as messages, Temporaries() as temporaries:
            run([self.steps(wave)], at_once=1)
        return tuple(messages), temporaries.bytes


def most_under_way(waves: Sequence[tuple[int, bool]]) -> int:
    """Return the most temporary bytes at one time of waves about which the same ranks communicate.

    While some wait for their collectives, others begin. Of waves without collectives, one at a time is under way.

    Args:
        waves: for each its temporary bytes, and whether it communicates.
    """
    waiting = sorted((taken for taken, communicates in waves if communicates), reverse=True)[:AT_ONCE]
    alone = max((taken for taken, communicates in waves if not communicates), default=0)
    return max(sum(waiting), alone + sum(waiting[: AT_ONCE - 1]))
