"""Dion2: the polar factor of the rows of the momentum that have grown most (arXiv 2512.16928)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orthon.algorithms import muon
from orthon.algorithms.batch import Batch
from orthon.algorithms.lr_scale import lr_factor
from orthon.algorithms.momentum import added_gradients
from orthon.algorithms.options import Group, choice, flag, number, portion
from orthon.algorithms.polar_factor import POLAR_OPTIONS, dtype_of_polar, polar_cost
from orthon.algorithms.rule import MATRIX_OPTIONS, Rule
from orthon.algorithms.selected_rows import Selection, decay_and_subtract, polar_of_rows, selected, take
from orthon.algorithms.state import Counter, Entries, Entry
from orthon.sharding import Layout, Step

Matrices = Tensor | list[Tensor]  # (b, selected, n), or where the ranks have different numbers of rows, a list
Normalize = Callable[[Matrices, Selection, Batch, Group], Step[Matrices]]


def dion2(batch: Batch, group: Group, normalize: Normalize | None = None) -> Step[None]:
    """Make one step of Dion2 on matrices X (b, m, n) with momentum M (b, m, n).

    M ← M + G
    S ← the ⌈fraction·m⌉ rows of M with the largest ℓ1 norms
    O ← polar(M[S])
    M[S] ← momentum·M[S]
    X ← (1 − lr·weight_decay)·X
    X[S] ← X[S] − lr·scale·O

    Where m > n, columns take the place of the rows.
    """
    scale = lr_factor(group["lr_scale"], *batch.layout.shape)
    if group["lr_scale_by_fraction"]:
        scale /= math.sqrt(group["fraction"])
    m, n = batch.layout.shape
    if m > n:
        batch = batch.transposed()
    M, norms = added_gradients(batch, group, norms=group["selection"] != "random")  # (b, m, n), (b, m)
    S = yield from selected(norms, batch, group)
    dtype, keep = dtype_of_polar(M.dtype, S.layout, group), 1 - batch.gated(1 - group["momentum"])
    U = take(M, S.rows, dtype, keep)  # (b, selected, n)
    O = yield from polar_of_rows(U, S, batch, group)
    if normalize is not None:
        O = yield from normalize(O, S, batch, group)
    lr, rate = batch.rates(group)
    decay_and_subtract(batch, S, O, rate=rate, by=lr * scale, cautious=group["cautious_weight_decay"])


def _entries(shape: tuple[int, ...], group: Group) -> Entries:  # noqa: ARG001
    """Return a zero momentum (m, n), and for random rows the number of steps."""
    momentum = Entry(dtype=group["state_dtype"], own=True)
    return {"momentum": momentum, **({"step": Counter(on_device=group["capturable"])} if _counts(group) else {})}


def _counts(group: Group) -> bool:
    return bool(group["selection"] == "random")


def _compresses(layout: Layout, group: Group) -> bool:  # noqa: ARG001
    """Return whether the rows are known without the gradients, so that only they need to be averaged."""
    return bool(group["selection"] == "random" and group["fraction"] < 1)


def temporaries(layout: Layout, group: Group, dtype: torch.dtype) -> float:
    """Return the bytes of Muon for the selected rows alone."""
    return float(group["fraction"] * muon.temporaries(layout, group, dtype))


def _cost(shape: tuple[int, ...], group: Group) -> float:
    short, long = sorted(shape)
    return polar_cost((portion(group["fraction"], short), long), group)


RULE = Rule(
    name="dion2",
    options={
        **MATRIX_OPTIONS,
        **{name: option for name, option in POLAR_OPTIONS.items() if name != "polar_route"},
        "momentum": number(0.95, "in [0, 1)", lambda v: 0 <= v < 1),
        "fraction": number(0.25, "in (0, 1]", lambda v: 0 < v <= 1),
        "selection": choice("global", "local", "random"),
        "lr_scale_by_fraction": flag(False),
    },
    entries=_entries,
    update=dion2,
    for_matrices=True,
    temporaries=temporaries,
    compresses=_compresses,
    cost=_cost,
    route=lambda layout, count, group: "alone" if layout.everyone.size == 1 else "owners",  # noqa: ARG005
    polar_dtype=dtype_of_polar,
    counts=_counts,
)
