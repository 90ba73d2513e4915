"""Dion3, also called NorDion2: Dion2 with second moments of rows (arXiv 2608.11612)."""

from orthon.algorithms import dion2
from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group, choice
from orthon.algorithms.row_moments import ROW_OPTIONS, row_gains, row_moments
from orthon.algorithms.rule import Rule
from orthon.algorithms.selected_rows import SelectedRows
from orthon.algorithms.state import Entries
from orthon.sharding import Step


def dion3(batch: Batch) -> Step[None]:
    """Make one step of Dion3: Dion2, whose O is divided by root mean squares v (b, m, 1) of the rows of X.

    v ← beta2·v + (1 − beta2)·mean_j O²        of the rows S
    Ô ← O / (√v + eps)
    Ô ← Ô·‖O‖ / ‖Ô‖                            Frobenius norms
    X and M as in Dion2, with Ô in place of O

    S are rows also where m > n. The option "selection_side" may ask for the shorter side: then S are columns there, and
    v and Ô are of all rows.
    """
    O = (yield from dion2.direction(batch)).wide()
    gains = yield from row_gains(batch, O.squares(), length=O.length(), chosen=O.chosen())  # (b, m)
    O = O.times(gains)
    O.descend(divided_by=dion2.lr_divisor(batch.options))


def _entries(shape: tuple[int, ...], options: Group) -> Entries:
    return {**SelectedRows().entries(shape, options), **row_moments()}


RULE = Rule(
    name="dion3",
    update=dion3,
    entries=_entries,
    work=SelectedRows(moments=True),
    options={**dion2.OPTIONS, **ROW_OPTIONS, "selection_side": choice("rows", "short")},
)
