"""Which copy of the ranks works together on which matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from orthon.sharding.layout import Layout


@dataclass(frozen=True)
class Job:
    """The work on the matrices of one batch.

    Attributes:
        layout: of the matrices.
        count: how many they are.
        cost: of the work on one of them, in any unit.
    """

    layout: Layout
    count: int
    cost: float


def deal(jobs: Sequence[Job]) -> list[list[int]]:
    """Return the owner of each matrix of each job, as an index in `layout.everyone.ranks`.

    All ranks that together hold one copy of a matrix work on it together; the first of them counts as the owner. The
    matrix with the longest work comes first. Each goes to the copy whose busiest rank has the least work so far
    (Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17, 1969). Only jobs of the same ranks
    are weighed together, so that all of them come to the same result.
    """
    loads: dict[tuple[int, ...], list[float]] = {}
    owners: list[list[int]] = [[] for _ in jobs]
    for i in sorted(range(len(jobs)), key=lambda i: -jobs[i].cost):
        job = jobs[i]
        ranks = job.layout.everyone
        load = loads.setdefault(ranks.ranks, [0.0] * ranks.size)
        teams = _copies(job.layout)
        heap = [(max(load[rank] for rank in team), place) for place, team in enumerate(teams)]
        heapify(heap)
        for _ in range(job.count):
            most, place = heap[0]
            heapreplace(heap, (most + job.cost / len(teams[place]), place))
            owners[i].append(teams[place][0])
            for rank in teams[place]:
                load[rank] += job.cost / len(teams[place])
    return owners


def _copies(layout: Layout) -> list[list[int]]:
    """Return for each copy of the matrices the ranks that together hold it, as indices in `layout.everyone.ranks`."""
    axes = layout.joint_axes
    cut = {axis for cuts in layout.cuts for axis in cuts}
    copies: dict[tuple[int, ...], list[int]] = {}
    for index in range(layout.everyone.size):
        place = layout.grid.coordinates(index, axes)
        copies.setdefault(tuple(place[axis] for axis in axes if axis not in cut), []).append(index)
    return list(copies.values())
