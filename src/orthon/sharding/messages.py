"""The collectives of a step, noted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Message:
    """One collective, as this rank sees it.

    Attributes:
        kind: "sum" (all-reduce), "gather" (all-gather) or "exchange" (all-to-all).
        ranks: how many take part.
        numbers: how many numbers the whole tensor has that is summed or gathered. In an exchange, how many this rank
            gives, those for itself included.
        bytes: of these numbers.
        sent: the bytes that leave this rank. A sum sends as a ring does, nearly twice what it sums.
        received: the bytes that come to this rank.
        line: the global ranks that take part.
    """

    kind: str
    ranks: int
    numbers: int
    bytes: int
    sent: float
    received: float
    line: tuple[int, ...] = field(default=(), repr=False)


_log: list[Message] | None = None


@contextmanager
def record_messages() -> Iterator[list[Message]]:
    """Note every collective of Orthon in this block. Those on meta tensors are noted and not carried out."""
    global _log
    before, _log = _log, []
    try:
        yield _log
    finally:
        _log = before


def note_message(kind: str, line: Sequence[int], whole: Tensor, *, sent: float, received: float) -> None:
    """Note a collective, if somebody records them. For the arguments see `Message`; numbers, here, and not bytes."""
    if _log is not None:
        size = whole.element_size()
        _log.append(Message(kind, len(line), whole.numel(), whole.nbytes, sent * size, received * size, tuple(line)))
