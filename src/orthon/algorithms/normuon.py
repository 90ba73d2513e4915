"""NorMuon: Muon with second moments of rows (arXiv 2510.05491)."""

from dataclasses import replace

from orthon.algorithms import muon
from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group
from orthon.algorithms.row_moments import ROW_OPTIONS, normalized_rows, row_moments
from orthon.algorithms.state import Entries
from orthon.sharding import Step


def normuon(batch: Batch, group: Group) -> Step[None]:
    """Make one step of NorMuon: Muon, whose O (b, m, n) is divided by root mean squares v (b, m, 1) of its rows.

    v ← beta2·v + (1 − beta2)·mean_j O²
    Ô ← O / (√v + eps)
    Ô ← Ô·‖O‖ / ‖Ô‖                            Frobenius norms
    X ← (1 − lr·weight_decay)·X − lr·scale·Ô
    """
    yield from muon.muon(batch, group, normalized_rows)


def _entries(shape: tuple[int, ...], group: Group) -> Entries:
    return {**muon.entries(shape, group), **row_moments()}


RULE = replace(muon.RULE, name="normuon", options={**muon.OPTIONS, **ROW_OPTIONS}, entries=_entries, update=normuon)
