"""The best that this machine could do: the measured rate of matrix products and bandwidth of copies."""

import statistics
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks.counts import Counts
from benchmarks.results import name_of
from benchmarks.timing import in_a_row


@dataclass(frozen=True)
class Roofline:
    """What a device does at best.

    Attributes:
        device: the one.
        bandwidth: of a large copy, bytes read and written per second.
        rates: operations per second of matrix products, by dtype.
    """

    device: torch.device
    bandwidth: float
    rates: dict[torch.dtype, float] = field(default_factory=dict)

    def seconds(self, counts: Counts) -> float:
        """Return the least time: the larger of that for the operations and that for the bytes."""
        return max(counts.flops / self.rates[counts.dtype] if counts.flops else 0.0, counts.bytes / self.bandwidth)

    def as_dict(self) -> dict[str, float]:
        """Return the figures under names with units."""
        rates = {f"{name_of(dtype)}_tflop_per_s": rate / 1e12 for dtype, rate in self.rates.items()}
        return {"copy_gb_per_s": self.bandwidth / 1e9, **rates}


def measured(device: torch.device, *, side: int, copied: int, seconds: float = 1.0) -> Roofline:
    """Measure a device.

    Args:
        device: the one.
        side: of the products, of random matrices: the best of square ones of this side and of half of it, and of
            (side × side) by (side × side/4), as Dion's are.
        copied: bytes of the copied tensor; more than the caches hold.
        seconds: for each of the measurements, about.
    """
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    copies = in_a_row([partial(target.copy_, source)], device, repeats=30, seconds=seconds)
    del source, target
    rates = {dtype: _rate(device, dtype, side, seconds) for dtype in (torch.float32, torch.bfloat16)}
    return Roofline(device, 2 * copied / statistics.median(copies), rates)


def _rate(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    best = 0.0
    for m, k, n in ((side, side, side), (side // 2, side // 2, side // 2), (side, side, side // 4)):
        A, B = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
        C = torch.empty(m, n, device=device, dtype=dtype)
        taken = in_a_row([partial(torch.mm, A, B, out=C)], device, repeats=20, seconds=seconds / 3)
        best = max(best, 2 * m * k * n / statistics.median(taken))
    return best
