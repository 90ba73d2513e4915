"""Power iteration on the momentum: its leading directions, found wherever its parts lie."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.low_rank_way import Way
from orthon.algorithms.momentum import added_gradients
from orthon.algorithms.tail import tail_factors
from orthon.algorithms.weights import product_and_rest
from orthon.linalg import (
    Columns,
    orthonormalize_on_shards,
    overwrite_where_,
    polar_columns_on_shards,
    rounding_noise,
    unit_columns_on_shards,
)
from orthon.linalg.kernels import add_and_multiply_, add_each, product, subtract_product_
from orthon.sharding import Step


@dataclass
class _Right:
    """What this rank has of R, (b, share of n, r), and of what `right` has made of it.

    Attributes:
        R: Mᵀ P.
        columns: its right factor, with the lengths of the columns of R.
        T: R = Q T, (b, r, r), of an orthonormal Q; None until it is needed.
    """

    R: Tensor
    columns: Columns
    T: Tensor | None = None


class LowRankMomentum:
    """Momentum M (b, m, n) and its right factor Q (b, n, r), of which this rank holds shards.

    Rows and columns are those of the weights, or change places where the option "orthonormal_side" asks for that.
    The verbs below leave M and Q as they are in a step that is to be left out.

    They come in this order: `add_gradients`, then `left` and `right` once or several times, `descend`, `fade`.

    Args:
        batch: with the state "momentum" and "Q", and the options of `LowRank`.
    """

    def __init__(self, batch: Batch) -> None:
        # What this rank keeps of all matrices, with rows and columns as the weights have them.
        self._shards, self._kept = batch.stacked("momentum"), batch.stacked("Q")
        key = "low rank", self._shards.dtype, self._kept.shape
        if key not in batch.memo:
            batch.memo[key] = Way.of(batch, self._shards, self._kept)
        way: Way = batch.memo[key]
        self._way, self._given, self._batch = way, batch, batch.transposed() if way.transposed else batch

        # What this rank works on: its shards of all matrices, or on the route "owners" some whole ones. None before the
        # verb that sets it, and after `fade` has sent what is made of it.
        self._N: Tensor | None = None  # by `add_gradients`: M + G, (b, m', n'), as it is stored
        self._M: Tensor | None = None  # by `add_gradients`: the same in the dtype of products
        self._Q: Tensor | None = None  # by `add_gradients`, and written to by `right`: (b, n', r)
        self._MQ: Tensor | None = None  # by `add_gradients`, for the first `left`, where it costs less there
        self._left: Columns | None = None  # by `left`: of P, (b, share of m, r)
        self._right: _Right | None = None  # by `right`
        self._update: Tensor | None = None  # by `descend`, where `fade` is to send it: (b, m, n)

    def add_gradients(self) -> Step[None]:
        """N ← M + G, or momentum·M + G where nothing is fed back, and the first N Q with it. N takes the place of M."""
        way, batch, shards = self._way, self._batch, self._shards
        keep = None if way.feeds_back else 1 - batch.gated(1 - batch.options["momentum"])
        if way.owned is not None:
            added_gradients(batch, norms=False, keep=keep)
            whole, self._Q = yield from way.owned.bring(shards, self._kept)
            self._N = whole.mT if way.transposed else whole
            del whole
            self._M = self._N.to(way.dtype)
            return
        self._Q = yield from way.cols.whole(self._kept)
        self._N = shards.mT if way.transposed else shards
        if way.dtype == shards.dtype and way.rows.copies.size == 1:
            self._M = self._N
            with batch.writing:  # the gradients are zero in a step that is to be left out
                Q = self._Q.to(way.dtype)
                self._MQ = add_and_multiply_(self._N, batch.grads, Q, gain=way.gain, keep=keep)
        else:
            self._M = added_gradients(batch, norms=False, keep=keep)[0].to(way.dtype)

    def left(self) -> Step[Tensor]:
        """Return P ← orthonormalize(M Q), (b, m, r)."""
        assert self._M is not None, "add_gradients comes before left"
        assert self._Q is not None
        way, partial, self._MQ = self._way, self._MQ, None
        if partial is None:
            partial = product(way.rows.divided(self._M), self._Q.to(self._M.dtype))  # (b, m of this copy, r)
        B = yield from way.rows.reduce(partial)  # (b, share of m, r)
        orthonormalizing = orthonormalize_on_shards(
            B, way.rows.ranks, precision=way.arithmetic, noise=way.noise, turn=self._given.turn
        )
        del partial, B  # so that their memory is free when it has wider copies
        self._left = yield from orthonormalizing
        # In an accelerator's arithmetic, sizes of columns that do not live may be anything.
        if self._given.route == "alone" and way.arithmetic.times is None:
            self._given.check_finite(self._left.size, "momentum")
        P: Tensor = yield from way.rows.gather(self._left.vectors.to(way.sent))
        return P

    def right(self, P: Tensor) -> Step[Tensor]:
        """Return Q ← R / column norms of R, or its orthonormal or polar factor, with R ← Mᵀ P, (b, n, r); Q is kept."""
        assert self._left is not None, "left comes before right"
        assert self._M is not None
        assert self._Q is not None
        way, cols = self._way, self._way.cols
        R = yield from cols.reduce(product(cols.divided(self._M.mT), P.to(self._M.dtype)))  # (b, share of n, r)
        name, turn = self._batch.options["right_factor"], self._given.turn
        made: Any = {"left": self._left, "precision": way.arithmetic, "noise": way.noise}
        if name == "normalize":
            right = yield from unit_columns_on_shards(R, cols.ranks, **made)
        elif name == "orthonormalize":
            right = yield from orthonormalize_on_shards(R.clone(), cols.ranks, turn=turn, **made)
        else:
            right = yield from polar_columns_on_shards(R, cols.ranks, turn=turn, **made)
        self._right = _Right(R, right)
        found: Tensor = yield from cols.gather(right.vectors.to(way.sent))
        with self._batch.writing:
            overwrite_where_(self._Q, self._batch.gated_mask(right.live.unsqueeze(-2)), found)
            if self._Q is not self._kept and way.owned is None:
                self._kept.copy_(cols.keep(self._Q))
        return found

    def descend(self, P: Tensor, Q: Tensor) -> Step[None]:
        """X ← (1 − lr·weight_decay)·X − lr·scale·(P Qᵀ + E diag(c)), with E = N − P Rᵀ and the tail's c.

        P Qᵀ + E diag(c) is a product of low rank, P (Q − diag(c) R)ᵀ, and a multiple of each column of N.
        """
        dtype = self._batch.options["product_dtype"]
        of_update = dtype or self._batch.weights[0].dtype
        rest = None
        if self._way.tail_length:
            Q, rest = yield from self._with_tail(Q, of_update)
        if self._way.owned is None:
            self._batch.descend_product(P, Q, rest=rest, dtype=dtype, always_finite=True)
            return
        P, Q = P.to(of_update), Q.to(of_update)
        if rest is not None:
            update = product_and_rest(P, Q, *rest)
        else:  # so that it lies in memory as the weights do
            update = (Q @ P.mT).mT if self._way.transposed else P @ Q.mT
        self._update = update.to(self._batch.weights[0].dtype)

    def _with_tail(self, Q: Tensor, of_update: torch.dtype) -> Step[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Return Q − diag(c) R, and N with the tail's c."""
        assert self._right is not None, "right comes before descend"
        assert self._N is not None
        way, right, columns = self._way, self._right, self._right.columns
        sized = None if way.is_orthonormal else columns.size.unsqueeze(-2)
        is_whole = way.cols.holders.size == 1
        c, found = yield from tail_factors(
            self._N,
            right.R if sized is None else columns.vectors * sized,
            columns,
            size=way.tail_length,
            noise=max(noise.of_matrix for noise in (way.noise, way.arithmetic.noise, rounding_noise(of_update))),
            cols=way.cols,
            beside=() if is_whole or sized is not None else (self._factor_of_right(),),
        )
        R = Q * sized if sized is not None else right.R if is_whole else Q @ found[0]  # without gathering it as well
        # In 16 bits, c may be beyond the range.
        return (R * -c.mT).to(Q.dtype).add_(Q), (self._N, c)

    def fade(self, P: Tensor, Q: Tensor) -> Step[None]:
        """M ← momentum·P Rᵀ + residual_momentum·E, or with nesterov N − G/(1 + momentum). It comes last.

        R is not gathered for that, since R = Q T with a small T: the lengths of its columns, or an r × r matrix.
        """
        assert self._right is not None, "right comes before fade"
        assert self._N is not None
        assert self._M is not None
        way, gated = self._way, self._given.gated
        momentum, residual = self._batch.options["momentum"], self._batch.options["residual_momentum"]
        if residual is not None:
            if not way.is_orthonormal:
                P = P * gated(self._right.columns.size).unsqueeze(-2)
            else:
                T = gated((yield from self._factor_of_right()))
                P, Q = (P @ T.mT, Q) if way.rows.size < way.cols.size else (P, Q @ T)
            with self._batch.writing:
                if residual != 1:
                    self._N.mul_(1 - gated(1 - residual))
                subtract_product_(self._N, P, Q, by=residual - momentum, dtype=self._M.dtype)
        elif self._batch.options["nesterov"]:
            with self._batch.writing:
                add_each(self._shards, self._given.grads, -way.gain / (1 + momentum))
        if way.owned is not None:
            del P, Q
            yield from self._send_back()

    def _factor_of_right(self) -> Step[Tensor]:
        """Return T with R = Q T, (b, r, r), of an orthonormal Q."""
        right = self._right
        assert right is not None
        if right.T is None:
            vectors = right.columns.vectors
            T = yield from self._way.cols.ranks.sum(vectors.mT @ right.R.to(vectors.dtype))
            right.T = T.to(self._way.sent)
        return right.T

    def _send_back(self) -> Step[None]:
        """Send Q and the update to those whose they are, and M if it is not theirs still, and make the step."""
        way, M = self._way, None
        assert way.owned is not None
        assert self._update is not None, "descend comes before fade"
        assert self._N is not None
        assert self._Q is not None
        if way.feeds_back:
            M = self._N.mT if way.transposed else self._N
        update = self._update.mT if way.transposed else self._update
        returning = way.owned.send_back(M, update, self._Q, shards=self._shards, kept=self._kept)
        # What is sent takes their memory, and is free itself when it has been sent.
        self._N = self._M = self._Q = self._left = self._right = self._update = M = None
        del update
        M, update, kept = yield from returning
        with self._batch.writing:
            if M is not None:
                self._shards.copy_(M)
            self._kept.copy_(kept)
        del M, kept
        self._given.descend(update)
