"""Values for the selected rows of matrices: taken from momentum, orthonormalized, scaled, subtracted from weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.selected_rows import Selection
from orthon.algorithms.weights import LARGE, decay_, descend_
from orthon.algorithms.whole_matrix import dtype_of_polar, polar_by_owners
from orthon.linalg import factor_dtype, in_cache, polar
from orthon.linalg.device import device_type
from orthon.sharding import Step


@dataclass(frozen=True)
class Rows:
    """Values (k, n) for the selected rows of each matrix of a batch.

    Attributes:
        batch: of the matrices. Where columns are selected, it is read transposed.
        selection: which rows.
        values: one for each matrix: one tensor (b, k, n), or a list where the matrices are large, or where this rank
            has more rows of one than of another.
    """

    batch: Batch
    selection: Selection
    values: Tensor | list[Tensor]

    @classmethod
    def taken(cls, M: Tensor, batch: Batch, selection: Selection) -> "Rows":
        """Return the selected rows of M, in the dtype of polar factors, and multiply them by "momentum" in M.

        Args:
            M: the momentum, (b, m, n).
            batch: to which it belongs.
            selection: which rows.
        """
        dtype = dtype_of_polar(M.dtype, selection.layout, batch.options)
        keep = 1 - batch.gated(1 - batch.options["momentum"])
        with batch.writing:
            return cls(batch, selection, _take(M, selection.rows, dtype, keep))

    def polar(self) -> Step["Rows"]:
        """Return this rank's shards of the polar factors of the selected rows. May overwrite the values."""
        batch, selection, options = self.batch, self.selection, self.batch.options
        whole, turned = self.values, batch.reads_transposed  # what lies in memory by columns is quicker to read so
        if batch.route != "alone":
            rows, are_even, like = selection.everywhere, isinstance(whole, Tensor), whole[0].new_empty(0)
            if rows is None and not isinstance(whole, Tensor):
                whole = torch.stack(whole)
            working = polar_by_owners(whole, batch.owned(selection.layout), like, options, rows=rows)
            del self, whole  # so that the memory of the values is free when they have been sent
            found = yield from working
            return Rows(batch, selection, found if are_even else list(found))
        if isinstance(whole, Tensor):
            seen = whole.mT if turned else whole
        else:
            seen = torch.stack([part.mT for part in whole] if turned else whole)
            whole.clear()  # so that their memory is free
        found = polar(seen, method=options["polar"], steps=options["polar_steps"], dtype=seen.dtype, overwrite=True)
        batch.check_finite(found[:, 0, :1], "momentum")
        return replace(self, values=found.mT if turned else found)

    def wide(self) -> "Rows":
        """Return the same in float32 or better."""
        return self._mapped(lambda part: part.to(factor_dtype(part.dtype)))

    def squares(self) -> Tensor:
        """Return the sum of squares of this rank's part of each row of the weights, (b, m); 0 for rows not selected."""
        if self.batch.reads_transposed:
            return torch.stack([part.square().sum(0) for part in self.values])
        return self._spread(self._mapped(lambda part: part.square().sum(-1)).values)

    def chosen(self) -> Tensor | None:
        """Return 1 for the selected rows of the weights and 0 for others, (b, m). None if columns are selected."""
        if self.batch.reads_transposed:
            return None
        return self._spread(self._mapped(lambda part: part.new_ones(part.shape[:-1])).values)

    def length(self) -> int:
        """Return how many numbers a whole row of the weights has of these values."""
        return self.selection.count if self.batch.reads_transposed else self.batch.layout.shape[1]

    def times(self, gains: Tensor) -> "Rows":
        """Return the values with each row of the weights multiplied by a number, (b, m)."""
        if self.batch.reads_transposed:
            factors: Tensor | list[Tensor] = gains.unsqueeze(-2)
        elif isinstance(self.selection.rows, Tensor):
            factors = gains.gather(1, self.selection.rows).unsqueeze(-1)
        else:
            factors = [gain[rows].unsqueeze(-1) for gain, rows in zip(gains, self.selection.rows, strict=True)]
        if isinstance(self.values, Tensor) and isinstance(factors, Tensor):
            return replace(self, values=self.values * factors)
        return replace(self, values=[part * factor for part, factor in zip(self.values, factors, strict=True)])

    def descend(self, *, divided_by: float = 1.0) -> None:
        """Make the step: X ← (1 − lr·weight_decay)·X everywhere, and X[S] ← X[S] − lr·scale·values.

        Args:
            divided_by: what `scale` is divided by, see `Batch.rates`.
        """
        by, rate = self.batch.rates(divided_by=divided_by)
        cautious = self.batch.options["cautious_weight_decay"]
        values = self.values if self.batch.gate is None else self._mapped(self.batch.gated).values
        with self.batch.writing:
            _descend_rows_(self.batch.weights, self.selection.rows, values, rate=rate, by=by, cautious=cautious)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        """Return what a function makes of the last dims of the values."""
        if isinstance(self.values, Tensor):
            return replace(self, values=function(self.values))
        return replace(self, values=list(map(function, self.values)))

    def _spread(self, x: Tensor | list[Tensor]) -> Tensor:
        """Return numbers for the selected rows (b, k) as numbers for all rows of this rank, (b, m); 0 elsewhere."""
        whole = x[0].new_zeros(len(x), self.batch.layout.shard_shape[0])
        if isinstance(x, Tensor) and isinstance(self.selection.rows, Tensor):
            return whole.scatter_(1, self.selection.rows, x)
        for into, rows, part in zip(whole, self.selection.rows, x, strict=True):
            into.index_copy_(0, rows, part)
        return whole


def _take(
    M: Tensor, rows: Tensor | Sequence[Tensor], dtype: torch.dtype, keep: float | Tensor
) -> Tensor | list[Tensor]:
    """Return some rows of each matrix of M (b, m, n) in a dtype, and multiply them by `keep` in M."""
    if isinstance(rows, Tensor) and _share_launches(M[0]):
        index = _index(rows, M.shape[-1])
        part = M.gather(1, index)
        taken = part.to(dtype, copy=True)
        M.scatter_(1, index, part.mul_(keep))
        return taken
    return [_take_of_one(matrix, of_matrix, dtype, keep) for matrix, of_matrix in zip(M.unbind(), rows, strict=True)]


def _take_of_one(X: Tensor, rows: Tensor, dtype: torch.dtype, keep: float | Tensor) -> Tensor:
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


def _descend_rows_(
    weights: Sequence[Tensor],
    rows: Tensor | Sequence[Tensor],
    O: Tensor | Sequence[Tensor],
    *,
    rate: float | Tensor,
    by: float | Tensor,
    cautious: bool,
) -> None:
    """Decay the weights, each (m, n), and subtract by·O from their selected rows, where O is (selected, n) for each."""
    if isinstance(O, Tensor) and isinstance(rows, Tensor) and _share_launches(weights[0]):
        whole = O.new_zeros(len(O), *weights[0].shape).scatter_(1, _index(rows, O.shape[-1]), O)
        descend_(weights, whole.unbind(), rate=rate, by=by, cautious=cautious, alike=True)
        return
    each = list(zip(weights, rows, O, strict=True))
    if cautious:
        decay_(weights, rate, cautious=[torch.zeros_like(X).index_copy_(0, S, part.to(X.dtype)) for X, S, part in each])
        rate = 0.0
    for X, S, part in each:
        if X.is_contiguous():
            X.mul_(1 - rate).index_add_(0, S, part.to(X.dtype).mul(-by))
            continue
        for [x], [o] in in_cache([X.mT], [part.mT]):
            x.mul_(1 - rate).index_add_(1, S, o.to(x.dtype).mul(-by))


def _share_launches(matrix: Tensor) -> bool:
    """Return whether the matrices of a batch are worked on together, as they are small or on an accelerator."""
    return device_type(matrix.device) != "cpu" or matrix.numel() < LARGE


def _index(rows: Tensor, n: int) -> Tensor:
    """Return the indices (b, k) of rows as those of their entries, (b, k, n)."""
    return rows.unsqueeze(-1).expand(-1, -1, n)
