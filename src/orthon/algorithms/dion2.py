"""Dion2: the polar factor of the rows of the momentum that have grown most (arXiv 2512.16928)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthon.algorithms.momentum import accumulated
from orthon.algorithms.muon import largest
from orthon.algorithms.polar_factor import POLAR_OPTIONS, in_polar_dtype, polar_by_owners, polar_cost
from orthon.algorithms.rule import MATRIX_OPTIONS, Rule
from orthon.batch import Batch
from orthon.linalg import polar, random_normal
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
    with accumulated(batch, group, keep=1.0) as M:
        S = yield from _selected(M, batch, group)
        U = M[S.matrix, S.row]  # (all selected rows of all matrices, n)
        O = yield from _polar_of_rows(U, S, batch, group)
        M[S.matrix, S.row] = U * (1 - batch.gated(1 - group["momentum"]))
    if normalize is not None:
        O = yield from normalize(O, S, batch, group)
    lr = batch.gated_lr(group["lr"])
    rate, parts = lr * group["weight_decay"], torch.split(O.to(batch.weights[0].dtype), S.counts)
    rows = torch.split(S.row, S.counts)
    directions = None
    if group["cautious_weight_decay"]:
        directions = [
            torch.zeros_like(X).index_copy_(0, i, part) for X, i, part in zip(batch.weights, rows, parts, strict=True)
        ]
    batch.decay(rate, cautious=directions)
    for X, i, part in zip(batch.weights, rows, parts, strict=True):
        X.index_add_(0, i, part.mul(-lr * scale))


@dataclass(frozen=True)
class Selection:
    """Which rows of the matrices of a batch are updated.

    Attributes:
        matrix: of each selected row that this rank has a part of, which of the batch it belongs to, ascending.
        row: its index among this rank's rows of that matrix, ascending in each.
        counts: how many there are of each matrix.
        selected: how many rows of each matrix are selected on all ranks together.
        layout: of the selected rows as matrices of their own, or of the whole ones where `everywhere` is given.
        everywhere: for each matrix the selected rows of all ranks, as indices of its rows, where other ranks have other
            rows; for "local" any that are as many in each rank's part.
    """

    matrix: Tensor
    row: Tensor
    counts: list[int]
    selected: int
    layout: Layout
    everywhere: list[list[int]] | None = None


Normalize = Callable[[Tensor, Selection, Batch, Group], Step[Tensor]]


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
        norms = torch.linalg.vector_norm(M, 1, dim=-1, dtype=torch.float64)  # (b, m)
        norms = yield from layout.grid.along(layout.cuts[1]).sum(norms)
        if not local:
            sizes = [last - first for first, last in layout.parts(0, layout.cuts[0])]
            norms = (yield from layout.grid.along(layout.cuts[0]).gather(norms.unsqueeze(-1), sizes)).squeeze(-1)
        chosen = norms.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = chosen.sort(dim=-1).values  # (b, k)

    if not layout.cuts[0]:
        matrix = torch.arange(b, device=M.device).repeat_interleave(k)
        rows = replace(layout, extents=(Extent(k), layout.extents[1]), _sides={})
        return Selection(matrix, chosen.flatten(), [k] * b, k, rows)
    if local:
        matrix = torch.arange(b, device=M.device).repeat_interleave(k)
        as_many = [
            row
            for first, last in layout.parts(0, layout.cuts[0])
            for row in range(first, first + math.ceil(group["fraction"] * (last - first)))
        ]
        return Selection(matrix, chosen.flatten(), [k] * b, len(as_many), layout, [sorted(as_many)] * b)
    # Waits for an accelerator: the lengths of what is sent depend on it. On "meta" it tells what any rows cost.
    everywhere = [[i * m // k for i in range(k)]] * b if M.is_meta else chosen.tolist()
    mine = [[row - start for row in rows if start <= row < stop] for rows in everywhere]
    matrix = torch.tensor([j for j, rows in enumerate(mine) for _ in rows], dtype=torch.long, device=M.device)
    row = torch.tensor([row for rows in mine for row in rows], dtype=torch.long, device=M.device)
    return Selection(matrix, row, [len(rows) for rows in mine], k, layout, everywhere)


def _polar_of_rows(U: Tensor, S: Selection, batch: Batch, group: Group) -> Step[Tensor]:
    """Return this rank's part of the polar factors of the selected rows, one matrix after the other, as U has them."""
    U = in_polar_dtype(U, S.layout, group)
    if S.layout.everyone.size == 1:
        stacked = U.view(len(S.counts), -1, U.shape[-1])
        return polar(stacked, method=group["polar"], steps=group["polar_steps"], dtype=U.dtype).flatten(0, 1)
    assert batch.owners is not None
    owners = Owners(S.layout, batch.owners, unsynced=batch.unsynced, rows=S.everywhere)
    return torch.cat((yield from polar_by_owners(torch.split(U, S.counts), owners, U, group)))


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
