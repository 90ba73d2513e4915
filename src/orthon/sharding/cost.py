"""What communication costs: which collectives there are, and when it pays to send."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Floating-point operations that a rank does in the time in which it sends or receives one number. On CPU cores
# that talk through gloo: 40 GFLOP/s against 8 ns; on GPUs: 400 TFLOP/s against 40 ps (50 GB/s of 16-bit numbers).
FLOPS_PER_NUMBER = {"cpu": 300.0, "cuda": 16_000.0}


def flops_per_number(device: torch.device) -> float:
    """Return how many operations take as long as sending a number."""
    return FLOPS_PER_NUMBER.get(device.type, FLOPS_PER_NUMBER["cuda"])


def worth_sending(flops: float, device: torch.device) -> bool:
    """Return whether it is quicker to receive a number than to compute it.

    Args:
        flops: the operations that the number takes.
        device: that would compute it.
    """
    return flops > flops_per_number(device)


@dataclass(frozen=True)
class Message:
    """One collective.

    Attributes:
        kind: "sum" (all-reduce), "scatter" (reduce-scatter), "gather" (all-gather) or "exchange" (all-to-all).
        ranks: how many take part.
        numbers: how many numbers the whole tensor has that is summed, scattered or gathered. In an exchange, how many
            this rank sends.
        bytes: of these numbers.
    """

    kind: str
    ranks: int
    numbers: int
    bytes: int

    @property
    def counts_as(self) -> float:
        """How many sums take as long: a sum is a scattering and a gathering, so that all others count as half."""
        return 1.0 if self.kind == "sum" else 0.5


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


def note_message(kind: str, ranks: int, whole: Tensor) -> None:
    """Note a collective, if somebody records them. For the arguments see `Message`."""
    if _log is not None:
        _log.append(Message(kind, ranks, whole.numel(), whole.nbytes))
