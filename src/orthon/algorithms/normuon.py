"""NorMuon: Muon with second moments of rows (arXiv 2510.05491)."""

from orthon.algorithms import muon
from orthon.algorithms.batch import Batch
from orthon.algorithms.momentum import MOMENTUM_OPTIONS
from orthon.algorithms.options import Group
from orthon.algorithms.row_moments import ROW_OPTIONS, row_gains, row_moments
from orthon.algorithms.rule import Rule
from orthon.algorithms.state import Entries
from orthon.algorithms.whole_matrix import WholeMatrix
from orthon.linalg import factor_dtype
from orthon.sharding import Step


def normuon(batch: Batch) -> Step[None]:
    """Make one step of NorMuon: Muon, whose O (b, m, n) is divided by root mean squares v (b, m, 1) of its rows.

    v ← beta2·v + (1 − beta2)·mean_j O²
    Ô ← O / (√v + eps)
    Ô ← Ô·‖O‖ / ‖Ô‖                            Frobenius norms
    X ← (1 − lr·weight_decay)·X − lr·scale·Ô
    """
    O = yield from muon.direction(batch)
    O = O.to(factor_dtype(O.dtype))
    gains = yield from row_gains(batch, O.square().sum(-1))  # (b, m): Ô is O times these
    batch.descend(O * gains.unsqueeze(-1))


def _entries(shape: tuple[int, ...], options: Group) -> Entries:
    return {**muon.entries(shape, options), **row_moments()}


RULE = Rule(
    name="normuon",
    update=normuon,
    entries=_entries,
    work=WholeMatrix(moments=True),
    options={**MOMENTUM_OPTIONS, **ROW_OPTIONS},
)
