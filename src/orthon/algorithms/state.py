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
    """

    side: int | None = None
    width: int = 1
    dtype: torch.dtype | None = None
    std: float = 0.0
    own: bool = False


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
