"""Some rows of the matrices of a batch: which are chosen, their polar factors, and their updates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthon.algorithms.batch import LARGE, Batch
from orthon.algorithms.options import Group, portion
from orthon.algorithms.polar_factor import polar_by_owners
from orthon.linalg import in_cache, polar, random_normal
from orthon.linalg.device import device_type
from orthon.sharding import Extent, Layout, Owners, Step


@dataclass(frozen=True)
class Selection:
    """Which rows of the matrices of a batch are updated.

    Attributes:
        rows: for each matrix their indices among this rank's rows of it, ascending; one tensor where all have as many.
        count: how many rows of each matrix are selected on all ranks together.
        layout: of the selected rows as matrices of their own, or of the whole ones where `everywhere` is given.
        everywhere: for each matrix the selected rows of all ranks, as indices of its rows, where other ranks have other
            rows; for "local" any that are as many in each rank's part.
    """

    rows: Tensor | Sequence[Tensor]
    count: int
    layout: Layout
    everywhere: list[list[int]] | None = None


def selected(norms: Tensor | None, batch: Batch, group: Group) -> Step[Selection]:
    """Return which rows to update, the same on every layout unless the selection is "local".

    Args:
        norms: of this rank's part of each row, in float64, (b, m); None for "random". They are compared in float32, and
            of equal ones the first are taken, so that the order of summation practically never changes the choice.
        batch: as the rule reads it.
        group: with the options "selection" and "fraction".
    """
    layout, b, device = batch.seen_layout, len(batch.names), batch.grads[0].device
    m = layout.shape[0]
    start, stop = layout.part(0)
    local = group["selection"] == "local"
    k = portion(group["fraction"], stop - start if local else m)
    if group["selection"] == "random":
        numbers = [state["step"].reshape(1).long() for state in batch.state]
        keys = [f"{group['seed']}/{name}/rows" for name in batch.names]
        everyone = torch.arange(m, device=numbers[0].device)  # an accelerator, if that tells which steps are left out
        each = zip(keys, numbers, strict=True)
        values = [random_normal(key, everyone, number, dtype=torch.float32).view(-1) for key, number in each]
        chosen = torch.stack(values).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    else:
        assert norms is not None
        norms = yield from layout.grid.along(layout.cuts[1]).sum(norms)
        if not local:
            sizes = [last - first for first, last in layout.parts(0, layout.cuts[0])]
            norms = (yield from layout.grid.along(layout.cuts[0]).gather(norms.unsqueeze(-1), sizes)).squeeze(-1)
        chosen = norms.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = chosen.sort(dim=-1).values  # (b, k)

    if not layout.cuts[0]:
        selected = replace(layout, extents=(Extent(k), layout.extents[1]), _sides={})
        return Selection(chosen.to(device), k, selected)
    if local:
        parts = layout.parts(0, layout.cuts[0])
        counts = [(first, portion(group["fraction"], last - first)) for first, last in parts]
        as_many = sorted(row for first, count in counts for row in range(first, first + count))
        return Selection(chosen.to(device), len(as_many), layout, [as_many] * b)
    # "global" waits for an accelerator: the lengths of what is sent depend on it. On "meta" any rows tell the cost.
    everywhere = [[i * m // k for i in range(k)]] * b if chosen.is_meta else chosen.tolist()
    mine = [[row - start for row in rows if start <= row < stop] for rows in everywhere]
    return Selection([torch.tensor(rows, dtype=torch.long, device=device) for rows in mine], k, layout, everywhere)


def polar_of_rows(U: Tensor | list[Tensor], S: Selection, batch: Batch, group: Group) -> Step[Tensor | list[Tensor]]:
    """Return this rank's part of the polar factors of the selected rows, as `take` returns them in U."""
    if S.layout.everyone.size == 1:
        turned = batch.reads_transposed  # what lies in memory by columns is quicker to read so
        if not isinstance(U, Tensor):
            stacked = torch.stack([part.mT for part in U] if turned else U)
            U.clear()
            U = stacked.mT if turned else stacked
        seen, steps = U.mT if turned else U, group["polar_steps"]
        found = polar(seen, method=group["polar"], steps=steps, dtype=U.dtype, overwrite=True)
        return found.mT if turned else found
    assert batch.owners is not None
    owners = Owners(S.layout, batch.owners, unsynced=batch.unsynced, rows=S.everywhere)
    return (yield from polar_by_owners(list(U), owners, U[0], group))


def take(M: Tensor, rows: Tensor | Sequence[Tensor], dtype: torch.dtype, keep: float | Tensor) -> Tensor | list[Tensor]:
    """Return some rows of each matrix of M (b, m, n) in a dtype, and multiply them by `keep` in M."""
    if isinstance(rows, Tensor) and _together(M[0]):
        index = _index(rows, M.shape[-1])
        part = M.gather(1, index)
        taken = part.to(dtype, copy=True)
        M.scatter_(1, index, part.mul_(keep))
        return taken
    return [_take(matrix, of_matrix, dtype, keep) for matrix, of_matrix in zip(M.unbind(), rows, strict=True)]


def _take(X: Tensor, rows: Tensor, dtype: torch.dtype, keep: float | Tensor) -> Tensor:
    if X.is_contiguous():
        part = X.index_select(0, rows)
        taken = part.to(dtype, copy=True)
        X.index_copy_(0, rows, part.mul_(keep))
        return taken
    taken = X.new_empty(X.shape[1], len(rows), dtype=dtype)
    for [x], [into] in in_cache([X.mT], [taken]):
        part = x.index_select(1, rows)
        into.copy_(part)
        x.index_copy_(1, rows, part.mul_(keep))
    return taken.mT


def decay_and_subtract(
    batch: Batch,
    S: Selection,
    O: Tensor | Sequence[Tensor],
    *,
    rate: float | Tensor,
    by: float | Tensor,
    cautious: bool,
) -> None:
    """Decay the weights and subtract a multiple of O from the selected rows.

    Args:
        batch: of the weights X (m, n).
        S: the selection.
        O: for each weight, (selected, n), or one tensor.
        rate: lr·weight_decay.
        by: factor of O.
        cautious: see `Batch.decay`.
    """
    if isinstance(O, Tensor) and isinstance(S.rows, Tensor) and _together(batch.weights[0]):
        whole = O.new_zeros(len(O), *batch.weights[0].shape).scatter_(1, _index(S.rows, O.shape[-1]), O)
        batch.decay_and_subtract(whole.unbind(), rate=rate, by=by, cautious=cautious)
        return
    if cautious:
        pairs = zip(batch.weights, S.rows, O, strict=True)
        batch.decay(
            rate, cautious=[torch.zeros_like(X).index_copy_(0, rows, part.to(X.dtype)) for X, rows, part in pairs]
        )
        rate = 0.0
    for X, rows, part in zip(batch.weights, S.rows, O, strict=True):
        if X.is_contiguous():
            X.mul_(1 - rate).index_add_(0, rows, part.to(X.dtype).mul(-by))
            continue
        for [x], [o] in in_cache([X.mT], [part.mT]):
            x.mul_(1 - rate).index_add_(1, rows, o.to(x.dtype).mul(-by))


def _together(matrix: Tensor) -> bool:
    """Return whether the matrices of a batch share launches, as they are small or on an accelerator."""
    return device_type(matrix.device) != "cpu" or matrix.numel() < LARGE


def _index(rows: Tensor, n: int) -> Tensor:
    """Return the indices (b, k) of rows as those of their entries, (b, k, n)."""
    return rows.unsqueeze(-1).expand(-1, -1, n)
