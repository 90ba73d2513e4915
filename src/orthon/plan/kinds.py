"""Which ranks do the same in a wave, so that one of them can be tried for all."""

from collections.abc import Hashable, Sequence

from orthon.explain.held import Held
from orthon.explain.places import places_of
from orthon.sharding.stages import two_factors
from orthon.step.batches import PlannedBatch, Wave


def kinds_of_ranks(wave: Wave, ranks: Sequence[int]) -> list[Hashable]:
    """Return for each rank a value that is the same for all ranks that do the same in a wave.

    Args:
        wave: as any of the ranks plans it.
        ranks: the global ranks.
    """
    columns: dict[tuple[object, ...], list[Hashable]] = {}
    for batch in wave:
        first = batch.pieces[0].layout
        places = places_of(first) if first.grid.ranks.ndim else dict.fromkeys(ranks, ())
        for layout in {id(piece.layout): piece.layout for piece in batch.pieces}.values():
            if (key := (id(layout.grid), layout.extents)) not in columns:
                columns[key] = [layout.shard_at(places[rank]) for rank in ranks]
        if batch.owners is not None:
            held = Held(batch)
            columns[id(batch), "held"] = [held.by(places[rank]) for rank in ranks]
        if batch.of_matrices and batch.route == "shards":
            columns[id(batch), "dealt"] = _dealt(batch, ranks)
    return list(zip(*columns.values(), strict=True))


def _dealt(batch: PlannedBatch, ranks: Sequence[int]) -> list[Hashable]:
    """Return of how many matrices each rank puts Gram matrices together, for rows and for columns.

    On the way to the rank that factors one, others put parts of it together. These are counted by line.
    """
    first = batch.pieces[0]
    count = sum(piece.count for piece in batch.pieces)
    found: list[dict[int, tuple[int, ...]]] = []
    for dim in (0, 1):
        sharing = first.layout.side(dim, divide=True, unsynced=first.compressed).ranks
        dealt = sharing.dealt(count, turn=batch.turn)
        levels, block = [dealt], 1
        for size in (factor for line in reversed(sharing.lines) for factor in reversed(two_factors(line.size))):
            block *= size
            sums = [sum(dealt[start : start + block]) for start in range(0, len(dealt), block)]
            levels.append([sums[index // block] for index in range(len(dealt))])
        found.append(dict(zip(sharing.ranks, zip(*levels, strict=True), strict=True)))
    return [tuple(counts.get(rank, ()) for counts in found) for rank in ranks]


def representatives(kinds: Sequence[Sequence[Hashable]]) -> list[int]:
    """Return indices of few ranks among which all kinds are.

    Args:
        kinds: for each wave the kinds of the ranks.
    """
    missing = {kind for of_wave in kinds for kind in of_wave}
    of_ranks = [set(of_rank) for of_rank in zip(*kinds, strict=True)]
    chosen = []
    while missing:
        best = max(range(len(of_ranks)), key=lambda rank: len(of_ranks[rank] & missing))
        chosen.append(best)
        missing -= of_ranks[best]
    return chosen
