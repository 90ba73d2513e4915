"""How many matrices of a batch each rank has in its hands, on their way to the owners."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import add

from orthon.sharding.hops import hops
from orthon.step.batches import PlannedBatch


class Held:
    """The matrices of a batch with owners, counted by where these are.

    Of a matrix that has copies, the copy of its owner is sent. After each hop fewer ranks have parts of it, and larger
    ones, until the owner has all of it. On shards, where an owner stands for its copy, there are no hops.

    Args:
        batch: with owners.
    """

    def __init__(self, batch: PlannedBatch) -> None:
        assert batch.owners is not None
        layout = batch.pieces[0].layout
        axes, copied = layout.joint_axes, (*layout.copied_axes, *layout.replicated_axes)
        along = [hop.axes for hop in hops(layout)] if batch.route == "owners" else []
        # At first, and after each hop: the axes along which a rank must be where the owner is.
        self._alike = list(accumulate([tuple(a for a in axes if a in copied), *along], add))
        places = [layout.grid.coordinates(owner, axes) for owner in batch.owners]
        self._counts = [Counter(tuple(place[a] for a in alike) for place in places) for alike in self._alike]

    @property
    def of_copies(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """How many matrices belong to each copy, by its place."""
        return tuple(sorted(self._counts[0].items()))

    def by(self, place: Sequence[int]) -> tuple[int, ...]:
        """Return of how many matrices a rank has parts: at first, and after each hop. The last are its own.

        Args:
            place: of the rank in the grid.
        """
        pairs = zip(self._alike, self._counts, strict=True)
        return tuple(counts[tuple(place[a] for a in alike)] for alike, counts in pairs)
