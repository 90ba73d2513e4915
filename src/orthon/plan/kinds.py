"""Which ranks do the same in a wave, so that one of them can be tried for all."""

from collections.abc import Hashable, Mapping, Sequence

from orthon.explain.held import Held
from orthon.explain.shares import places_of
from orthon.step.batches import PlannedBatch, Wave


def kinds_of_ranks(wave: Wave, ranks: Sequence[int]) -> list[Hashable]:
    """Return for each rank a value that is the same for all ranks that do the same in a wave.

    Args:
        wave: as any of the ranks plans it.
        ranks: the global ranks.
    """
    columns: dict[tuple[object, ...], list[Hashable]] = {}
    for batch in wave:
        grid = batch.pieces[0].layout.grid
        places = places_of(grid) if grid.ranks.ndim else dict.fromkeys(ranks, ())
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
    """Return of how many matrices each rank factors the Gram matrix, for rows and for columns that are orthonormal."""
    first = batch.pieces[0]
    count = sum(piece.count for piece in batch.pieces)
    found: list[Mapping[int, int]] = []
    for dim in (0, 1):
        sharing = first.layout.side(dim, divide=True, unsynced=first.compressed).ranks
        found.append(dict(zip(sharing.ranks, sharing.dealt(count, turn=batch.turn), strict=True)))
    return [tuple(counts.get(rank, 0) for counts in found) for rank in ranks]


def representatives(kinds: Sequence[Sequence[Hashable]]) -> list[int]:
    """Return indices of few ranks among which all kinds of each wave are.

    Args:
        kinds: for each wave the kinds of the ranks.
    """
    missing = [set(of_wave) for of_wave in kinds]
    chosen = []
    while any(missing):
        ranks = zip(*kinds, strict=True)
        new = [sum(kind in left for kind, left in zip(of_rank, missing, strict=True)) for of_rank in ranks]
        best = max(range(len(new)), key=new.__getitem__)
        chosen.append(best)
        for left, of_wave in zip(missing, kinds, strict=True):
            left.discard(of_wave[best])
    return chosen
