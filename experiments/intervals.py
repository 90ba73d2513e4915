"""Means of paired differences, with intervals that hold the true mean in 95 of 100 cases (Student's t)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The 97.5 % quantile of Student's t, by degrees of freedom from 1 on.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

MIXED = " ¹"  # behind differences of pairs on different processors


@dataclass(frozen=True)
class Difference:
    """A mean difference.

    Attributes:
        mean: of the differences.
        half: half of the width of the interval; None for a single difference, which has none.
        number: of differences.
        mixed: whether the two runs of some pair ran on different processors.
    """

    mean: float
    half: float | None
    number: int
    mixed: bool = False

    @property
    def is_none(self) -> bool:
        """Whether the interval holds 0, so that no difference has been found."""
        return self.half is not None and abs(self.mean) <= self.half

    def __str__(self) -> str:
        mark = MIXED * self.mixed
        if self.half is None:
            return f"{self.mean:+.3f} (one seed){mark}"
        text = f"{self.mean:+.3f} ± {self.half:.3f}"
        return (f"none ({text})" if self.is_none else text) + mark


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t. Beyond 30 degrees of freedom it is that of 30, a little too wide."""
    return _T[min(freedom, len(_T)) - 1]


def difference(of: Sequence[float]) -> Difference:
    """Return the mean of at least one difference, with its interval."""
    if len(of) == 1:
        return Difference(of[0], None, 1)
    half = t_quantile(len(of) - 1) * statistics.stdev(of) / math.sqrt(len(of))
    return Difference(statistics.fmean(of), half, len(of))


def paired(losses: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Return the mean difference between losses by seed and others, over the seeds that both have.

    None if there is no such seed, or a run of these has diverged.
    """
    differences = [losses[seed] - others[seed] for seed in sorted(losses.keys() & others.keys())]
    if not differences or not all(map(math.isfinite, differences)):
        return None
    return difference(differences)
