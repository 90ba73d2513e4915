"""Dion2: the polar factor of the rows of the momentum that have grown most (arXiv 2512.16928)."""

import math

from orthon.algorithms.batch import Batch
from orthon.algorithms.momentum import added_gradients
from orthon.algorithms.options import Group, flag
from orthon.algorithms.rows import Rows
from orthon.algorithms.rule import Rule
from orthon.algorithms.selected_rows import SelectedRows, selected, selects_columns
from orthon.sharding import Step


def dion2(batch: Batch) -> Step[None]:
    """Make one step of Dion2 on matrices X (b, m, n) with momentum M (b, m, n).

    M ← M + G
    S ← the ⌈fraction·m⌉ rows of M with the largest ℓ1 norms
    O ← polar(M[S])
    M[S] ← momentum·M[S]
    X ← (1 − lr·weight_decay)·X
    X[S] ← X[S] − lr·scale·O

    Where m > n, columns take the place of the rows, unless the option "selection_side" is "rows".
    """
    O = yield from direction(batch)
    O.descend(divided_by=lr_divisor(batch.options))


def direction(batch: Batch) -> Step[Rows]:
    """Return O, the polar factor of the selected rows of the updated momentum."""
    if selects_columns(batch.layout.shape, batch.options):
        batch = batch.transposed()
    M, norms = added_gradients(batch, norms=batch.options["selection"] != "random")  # (b, m, n), (b, m)
    S = yield from selected(norms, batch)
    return (yield from Rows.taken(M, batch, S).polar())


def lr_divisor(options: Group) -> float:
    """Return what the learning rate is divided by: with "lr_scale_by_fraction" √fraction."""
    return math.sqrt(options["fraction"]) if options["lr_scale_by_fraction"] else 1.0


OPTIONS = {"lr_scale_by_fraction": flag(False)}

RULE = Rule(name="dion2", update=dion2, entries=SelectedRows().entries, work=SelectedRows(), options=OPTIONS)
