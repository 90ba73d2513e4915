"""A sweep of learning rates by √2, which goes on until the best one has a worse one on each side."""

import math
from collections.abc import Iterable, Mapping

# The learning rates of a sweep are center·√2^k for whole numbers k. It begins with these.
FIRST = (-1, 0, 1)

# And it goes no further than this from the center: a factor of 11.
FURTHEST = 7


def lr_at(center: float, k: int) -> float:
    """Return the learning rate number k, to four digits, so that it is the same in data and settings."""
    return float(f"{center * math.sqrt(2) ** k:.4g}")


def outwards() -> tuple[Iterable[int], ...]:
    """Return the numbers k from the center to each end. A sweep leaves no gap: beyond a missing one there is none."""
    return range(FURTHEST + 1), range(-1, -FURTHEST - 1, -1)


def further(losses: Mapping[int, float]) -> list[int]:
    """Return the numbers k of the learning rates to try next; none if the sweep has ended.

    Args:
        losses: by k, of the runs that have ended; infinity for one that diverged.
    """
    missing = [k for k in FIRST if k not in losses]
    if missing:
        return missing
    best = best_of(losses)
    if math.isinf(losses[best]):  # all have diverged
        return [min(losses) - 1] if -min(losses) < FURTHEST else []
    return [k for k in (best - 1, best + 1) if k not in losses and abs(k) <= FURTHEST]


def best_of(losses: Mapping[int, float]) -> int:
    """Return the number of the learning rate with the lowest loss, of equal ones the lowest."""
    return min(losses, key=lambda k: (losses[k], k))


def is_inside(losses: Mapping[int, float]) -> bool:
    """Return whether the best learning rate has a worse one on each side."""
    best = best_of(losses)
    return best - 1 in losses and best + 1 in losses


def bottom(losses: Mapping[int, float]) -> float | None:
    """Return where, in steps of √2 from the center, the parabola through the best loss and its neighbours is lowest.

    None if the best one is at an edge, or if a neighbour has diverged.
    """
    if not is_inside(losses):
        return None
    best = best_of(losses)
    left, middle, right = (losses[best + side] for side in (-1, 0, 1))
    bend = left - 2 * middle + right
    if not 0 < bend < math.inf:
        return None
    return best + (left - right) / (2 * bend)
