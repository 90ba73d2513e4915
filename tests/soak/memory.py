"""Memory of a process, and how fast it grows."""

import ctypes
import gc
import os
from collections.abc import Sequence
from pathlib import Path


def resident_kb() -> float:
    """Return the resident memory of this process, after what is not in use has been given back. Linux alone."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the line through the points that has the least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
