"""The way of momentum and right factor to the owners of the matrices, and of what these make of them back."""

from collections.abc import Sequence

from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.sharding import Owners, Step, together


class OwnedMomentum:
    """Momentum M (m, n) and right factor Q (n, r) of matrices that others work on, and those that this rank works on.

    Args:
        batch: of the matrices, with owners.
        dim: along which Q lies: 0 for the rows of the weights, 1 for their columns.
        r: the rank of Q.
    """

    def __init__(self, batch: Batch, dim: int, r: int) -> None:
        layout = batch.layout
        self._momentum = batch.owned(layout)
        # Where several ranks keep the same part of Q, each sends a part of that.
        factor = layout.factor(dim, r)
        assert batch.owners is not None
        self._factor = Owners(factor, batch.owners, unsynced=batch.unsynced)
        kept, sent = layout.span(dim), factor.span(0)
        self._part = slice(sent.start - kept.start, sent.stop - kept.start)
        others = layout.cuts[1 - dim]
        self._same = layout.grid.along(others)
        self._sizes = [span.length for span in layout.spans(dim, others, also=others)]
        self._is_spread = layout.side(dim, divide=False, unsynced=batch.unsynced).spreads(r)

    def bring(self, M: Tensor, Q: Tensor) -> Step[list[Tensor]]:
        """Return M (o, m, n) and Q (o, n, r) of the o matrices that this rank owns.

        Args:
            M: (b, m', n'), what this rank has of all matrices.
            Q: (b, n', r), what this rank keeps of all right factors.
        """
        if not self._is_spread:
            Q = Q[:, self._part]
        return (yield from together(_brought(self._momentum, M), _brought(self._factor, Q)))

    def send_back(
        self, M: Tensor | None, update: Tensor, Q: Tensor, *, shards: Tensor, kept: Tensor
    ) -> Step[tuple[Tensor | None, Tensor, Tensor]]:
        """Return what this rank has of M, of the update and of Q, for all matrices.

        Args:
            M: (o, m, n), of the matrices that this rank owns; None if it stays as it was brought.
            update: (o, m, n).
            Q: (o, n, r).
            shards: M as given to `bring`, for its shape.
            kept: Q as given to `bring`.
        """
        part = kept if self._is_spread else kept[:, self._part]
        of_m, of_q = [shards.shape[1:]] * len(shards), [part.shape[1:]] * len(part)
        ways = [_returned(self._momentum, update, of_m), _returned(self._factor, Q, of_q)]
        if M is not None:
            ways.insert(0, _returned(self._momentum, M, of_m))
        returning = together(*ways)
        del M, update, Q, ways  # so that their memory is free when they have been sent
        *momentum, update, Q = yield from returning
        if not self._is_spread:
            Q = yield from self._same.gather(Q, self._sizes)
        return (momentum[0] if momentum else None), update, Q


def _brought(owners: Owners, x: Tensor) -> Step[Tensor]:
    whole = yield from owners.bring((yield from owners.take(x)), x)
    assert isinstance(whole, Tensor)
    return whole


def _returned(owners: Owners, whole: Tensor, shapes: Sequence[Sequence[int]]) -> Step[Tensor]:
    like = whole.new_empty(0)
    returning = owners.send_back(whole, like)
    del whole
    result = yield from owners.send_to_copies((yield from returning), shapes, like)
    assert isinstance(result, Tensor)
    return result
