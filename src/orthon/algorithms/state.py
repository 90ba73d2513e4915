"""What a rule keeps of a parameter between steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Entry:
    """One tensor of a state.

    Attributes:
        side: None for a tensor that lies as the parameter does. Otherwise it lies along the rows (0) or the columns
            (1) of the matrices.
        width: how many numbers there are for each index of that side.
        dtype: None for the parameter's.
        std: standard deviation of the random numbers that it starts with; zeros if it is 0.
        own: whether it differs between replicas where the rule averages over them.
        of_squares: whether it holds squares of gradients, which leave the range of a dtype long before these do.
    """

    side: int | None = None
    width: int = 1
    dtype: torch.dtype | None = None
    std: float = 0.0
    own: bool = False
    of_squares: bool = False

    def __post_init__(self) -> None:
        """Raise a TypeError or ValueError for a tensor that cannot be."""
        if self.side not in (None, 0, 1):
            raise ValueError(f"Entry: side should be 0, 1 or None, but is {self.side!r}")
        if not isinstance(self.width, int) or self.width < 1 or (self.side is None and self.width != 1):
            raise ValueError(f"Entry: width should be an integer >= 1, and 1 without a side, but is {self.width!r}")
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"Entry: dtype should be a floating dtype or None, but is {self.dtype!r}")
        if not 0 <= self.std < float("inf"):
            raise ValueError(f"Entry: std should be a number >= 0, but is {self.std!r}")


@dataclass(frozen=True)
class Counter:
    """The number of steps, a tensor without dims.

    Attributes:
        on_device: whether it lies where the parameter does from the start, instead of on the CPU.
        counted: whether it is counted for the rule, before each step that is not left out. Else the rule counts.
    """

    on_device: bool = False
    counted: bool = False


Entries = Mapping[str, Entry | Counter]
