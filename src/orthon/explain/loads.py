"""What each of the ranks has to do for one batch of matrices, as it follows from the plan."""

import math
from collections.abc import Sequence

from orthon.explain.held import Held
from orthon.machines import Machine
from orthon.sharding.hops import hops
from orthon.step.batches import PlannedBatch
from orthon.step.routes import Alike


class Load:
    """The work of the ranks on a batch of matrices, and about what they send for it.

    Args:
        batch: of a rule that tells the effort.
        machine: on which the ranks run.
    """

    def __init__(self, batch: PlannedBatch, machine: Machine) -> None:
        alike = Alike(batch.pieces, batch.route)
        self._layout, self._count, self._bytes = alike.layout, alike.count, alike.dtype.itemsize
        self._effort, self._seconds = alike.effort(batch.route), alike.work(batch.route, machine)
        self._by_owners = batch.route == "owners"
        self._held = None if batch.owners is None else Held(batch)
        # On shards the ranks share factorizations.
        self._sharers = max(1, min(len(batch.ranks), self._count)) if batch.route == "shards" else 1

    def work(self, place: Sequence[int]) -> tuple[float, float, float]:
        """Return the operations of products and of factorizations that a rank makes, and the seconds that they take."""
        count = self._count
        if self._held is not None:  # on shards copies divide the matrices
            held = self._held.by(place)
            count = held[-1] if self._by_owners else held[0] * self._layout.copies(unsynced=False).size
        return count * self._effort.products, count * self._effort.factoring / self._sharers, count * self._seconds

    def volume(self, place: Sequence[int]) -> float:
        """Return about how many bytes a rank sends and receives, half of their sum. It serves to compare ranks."""
        part = float(math.prod(self._layout.shard_at(place)))
        if self._held is None or not self._by_owners:
            return self._count * self._effort.numbers * self._bytes * part / math.prod(self._layout.largest_shard)
        before, *counts = self._held.by(place)
        one_way = 0.0
        for hop, after in zip(hops(self._layout), counts, strict=True):
            larger = part * hop.line.size
            one_way += (before - after) * part + after * (larger - part)
            before, part = after, larger
        # How often all numbers of a matrix are sent, there or back.
        ways = self._effort.numbers * len(self._layout.everyone.ranks) / math.prod(self._layout.shape)
        return one_way * ways / 2 * self._bytes
