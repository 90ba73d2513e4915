"""What may happen to a call on ranks instead of a result."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """What a rank raised.

    Attributes:
        type: the name of the exception's class.
        message: of the exception.
        traceback: as Python prints it.
    """

    type: str
    message: str
    traceback: str


class RankError(Exception):
    """A call did not return on all ranks.

    Attributes:
        failures: by rank, what was raised.
        hung: the ranks that had not answered when time was up.
        died: the ranks whose process ended.
    """

    def __init__(
        self, failures: dict[int, Failure], hung: Sequence[int], died: Sequence[int], last_words: dict[int, str]
    ) -> None:
        self.failures, self.hung, self.died = failures, tuple(hung), tuple(died)
        lines = [f"rank {rank} raised {f.type}: {f.message}" for rank, f in failures.items()]
        lines += [f"rank {rank} hung" for rank in self.hung] + [f"rank {rank} died" for rank in self.died]
        # Ranks mostly fail alike: one traceback each for those that differ.
        different = {(f.type, f.message): (rank, f) for rank, f in reversed(failures.items())}
        lines += [f"\nOn rank {rank}:\n{f.traceback}" for rank, f in reversed(different.values())]
        lines += [f"\nRank {rank} said:\n{words}" for rank, words in last_words.items() if words]
        super().__init__("\n".join(lines))
