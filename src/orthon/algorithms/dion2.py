"""Dion2: the polar factor of the rows of the momentum that have grown most (arXiv 2512.16928)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthon.algorithms.muon import largest
from orthon.algorithms.polar_factor import POLAR_OPTIONS, dtype_of_polar, polar_by_owners, polar_cost
from orthon.algorithms.rule import MATRIX_OPTIONS, Rule
from orthon.batch import Batch
from orthon.linalg import l1_norms, polar, random_normal
from orthon.lr_scale import lr_factor
from orthon.options import Group, choice, flag, number
from orthon.sharding import Extent, Layout, Owners, Step
from orthon.state import Counter, Entries, Entry


def dion2(batch: Batch, group: Group, normalize: "Normalize | None" = None) -> Step[None]:
    """Make one step of Dion2 on matrices X (b, m, n) with momentum M (b, m, n).

    M ← M + G
    S ← the ⌈fraction·m⌉ rows of M with the largest ℓ1 norms
    O ← polar(M[S])
    X ← (1 − lr·weight_decay)·X
    X[S] ← X[S] − lr·scale·O
    M[S] ← momentum·M[S]

    Where m > n, columns take the place of the rows.
    """
    scale = lr_factor(group["lr_scale"], *batch.layout.shape)
    if group["lr_scale_by_fraction"]:
        scale /= math.sqrt(group["fraction"])
    m, n = batch.layout.shape
    if m > n:
        batch = batch.transposed()
    M = batch.stacked_like_weights("momentum")
    batch.add_gradients(M, -1.0 if group["maximize"] else 1.0)
    if M.dtype == torch.float16:  # whose range the sum may leave
        M.clamp_(-torch.finfo(M.dtype).max, torch.finfo(M.dtype).max)
    S = yield from _selected(M, batch, group)
    U = [_take(matrix, rows) for matrix, rows in zip(M.unbind(), S.rows, strict=True)]  # each (selected, n)
    O = yield from _polar_of_rows(U, S, batch, group)
    keep = 1 - batch.gated(1 - group["momentum"])
    for matrix, rows, part in zip(M.unbind(), S.rows, U, strict=True):
        _put_(matrix, rows, part.mul_(keep))
    if normalize is not None:
        O = yield from normalize(O, S, batch, group)
    O = [part.to(X.dtype) for part, X in zip(O, batch.weights, strict=True)]
    lr = batch.gated_lr(group["lr"])
    directions = None
    if group["cautious_weight_decay"]:
        directions = [_put_(torch.zeros_like(X), i, part) for X, i, part in zip(batch.weights, S.rows, O, strict=True)]
    batch.decay(lr * group["weight_decay"], cautious=directions)
    for X, rows, part in zip(batch.weights, S.rows, O, strict=True):
        _add_(X, rows, part * (-lr * scale))


@dataclass(frozen=True)
class Selection:
    """Which rows of the matrices of a batch are updated.

    Attributes:
        rows: for each matrix their indices among this rank's rows of it, ascending.
        count: how many rows of each matrix are selected on all ranks together.
        layout: of the selected rows as matrices of their own, or of the whole ones where `everywhere` is given.
        everywhere: for each matrix the selected rows of all ranks, as indices of its rows, where other ranks have other
            rows; for "local" any that are as many in each rank's part.
    """

    rows: Sequence[Tensor]
    count: int
    layout: Layout
    everywhere: list[list[int]] | None = None


def _take(X: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of X, as a copy that lies in memory as X does."""
    return X.index_select(0, rows) if X.is_contiguous() else X.mT.index_select(1, rows).mT


def _put_(X: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Overwrite some rows of X."""
    X.index_copy_(0, rows, values) if X.is_contiguous() else X.mT.index_copy_(1, rows, values.mT)
    return X


def _add_(X: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add to some rows of X."""
    X.index_add_(0, rows, values) if X.is_contiguous() else X.mT.index_add_(1, rows, values.mT)


Normalize = Callable[[list[Tensor], Selection, Batch, Group], Step[list[Tensor]]]


def _selected(M: Tensor, batch: Batch, group: Group) -> Step[Selection]:
    """Return the rows of M (b, m, n) to update, the same on every layout unless the selection is "local".

    ℓ1 norms are summed in float64, compared in float32, and of equal ones the first are taken: the order of summation
    does not change the choice.
    """
    layout, b = batch.seen_layout, len(M)
    m = layout.shape[0]
    start, stop = layout.part(0)
    local = group["selection"] == "local"
    k = math.ceil(group["fraction"] * (stop - start if local else m))
    if group["selection"] == "random":
        number = batch.state[0]["step"].reshape(1).long()
        keys = [f"{group['seed']}/{name}/rows" for name in batch.names]
        everyone = torch.arange(m, device=number.device)  # an accelerator, where it tells which steps are left out
        values = [random_normal(key, everyone, number, dtype=torch.float32).view(-1) for key in keys]
        norms = torch.stack(values)
        chosen = norms.sort(dim=-1, descending=True, stable=True).indices[:, :k].to(M.device)
    else:
        norms = yield from layout.grid.along(layout.cuts[1]).sum(l1_norms(M))  # (b, m)
        if not local:
            sizes = [last - first for first, last in layout.parts(0, layout.cuts[0])]
            norms = (yield from layout.grid.along(layout.cuts[0]).gather(norms.unsqueeze(-1), sizes)).squeeze(-1)
        chosen = norms.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = chosen.sort(dim=-1).values  # (b, k)

    if not layout.cuts[0]:
        selected = replace(layout, extents=(Extent(k), layout.extents[1]), _sides={})
        return Selection(chosen.unbind(), k, selected)
    if local:
        parts = layout.parts(0, layout.cuts[0])
        counts = [(first, math.ceil(group["fraction"] * (last - first))) for first, last in parts]
        as_many = sorted(row for first, count in counts for row in range(first, first + count))
        return Selection(chosen.unbind(), len(as_many), layout, [as_many] * b)
    # Waits for an accelerator: the lengths of what is sent depend on it. On "meta" it tells what any rows cost.
    everywhere = [[i * m // k for i in range(k)]] * b if M.is_meta else chosen.tolist()
    mine = [[row - start for row in rows if start <= row < stop] for rows in everywhere]
    return Selection([torch.tensor(rows, dtype=torch.long, device=M.device) for rows in mine], k, layout, everywhere)


def _polar_of_rows(U: list[Tensor], S: Selection, batch: Batch, group: Group) -> Step[list[Tensor]]:
    """Return this rank's part of the polar factors of the selected rows, as U has them."""
    dtype = dtype_of_polar(U[0].dtype, S.layout, group)
    U = [part.to(dtype) for part in U]
    if S.layout.everyone.size == 1:
        found = polar(torch.stack(U), method=group["polar"], steps=group["polar_steps"], dtype=U[0].dtype)
        return list(found.unbind())
    assert batch.owners is not None
    owners = Owners(S.layout, batch.owners, unsynced=batch.unsynced, rows=S.everywhere)
    return (yield from polar_by_owners(U, owners, U[0], group))


def _entries(shape: tuple[int, ...], group: Group) -> Entries:  # noqa: ARG001
    """Return a zero momentum (m, n), and for random rows the number of steps."""
    momentum = Entry(dtype=group["state_dtype"], own=True)
    return {"momentum": momentum, **({"step": Counter()} if _counts(group) else {})}


def _counts(group: Group) -> bool:
    return bool(group["selection"] == "random")


def _compresses(layout: Layout, group: Group) -> bool:  # noqa: ARG001
    """Return whether the rows are known without the gradients, so that only they need to be averaged."""
    return bool(group["selection"] == "random" and group["fraction"] < 1)


def _cost(shape: tuple[int, ...], group: Group) -> float:
    short, long = sorted(shape)
    return polar_cost((math.ceil(group["fraction"] * short), long), group)


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
    largest=largest,
    compresses=_compresses,
    cost=_cost,
    route=lambda layout, count, group: "alone" if layout.everyone.size == 1 else "owners",  # noqa: ARG005
    counts=_counts,
)
