"""Power iteration on the momentum: its leading directions, found wherever its parts lie."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.low_rank import LowRank, is_transposed
from orthon.algorithms.momentum import added_gradients
from orthon.algorithms.owned_momentum import OwnedMomentum
from orthon.algorithms.tail import tail_factors
from orthon.algorithms.weights import product_and_rest
from orthon.linalg import (
    Columns,
    compute_dtype,
    default_precision,
    factor_dtype,
    orthonormalize_on_shards,
    overwrite_where_,
    polar_columns_on_shards,
    rounding_noise,
    unit_columns_on_shards,
)
from orthon.linalg.arithmetic import Arithmetic, arithmetic
from orthon.linalg.kernels import add_and_multiply_, add_each, product, subtract_product_
from orthon.linalg.precision import Noise
from orthon.sharding import Side, Step


class LowRankMomentum:
    """Momentum M (b, m, n) and its right factor Q (b, n, r), of which this rank holds shards.

    Rows and columns are those of the weights, or change places where the option "orthonormal_side" asks for that.
    The verbs below leave M and Q as they are in a step that is to be left out.

    Args:
        batch: with the state "momentum" and "Q", and the options of `LowRank`.
    """

    def __init__(self, batch: Batch) -> None:
        stored, self._kept = batch.stacked("momentum"), batch.stacked("Q")
        key = "low rank", stored.dtype, self._kept.shape
        if key not in batch.memo:
            batch.memo[key] = _Way.of(batch, stored, self._kept)
        self._way: _Way = batch.memo[key]
        self._given, self._batch = batch, batch.transposed() if self._way.transposed else batch
        self._shards, self._stored = stored, stored.mT if self._way.transposed else stored
        self._rows, self._cols = self._way.rows, self._way.cols
        self._dtype, self._is_orthonormal = self._way.dtype, batch.options["right_factor"] != "normalize"
        self._feeds_back = batch.options["residual_momentum"] is not None
        self._gain = -1.0 if batch.options["maximize"] else 1.0

    def add_gradients(self) -> Step[None]:
        """N ← M + G, or momentum·M + G where nothing is fed back, and the first N Q with it. N takes the place of M."""
        batch, dtype, gated = self._batch, self._dtype, self._given.gated
        keep = None if self._feeds_back else 1 - gated(1 - batch.options["momentum"])
        self._MQ: Tensor | None = None
        if self._way.owned is not None:
            added_gradients(batch, norms=False, keep=keep)
            whole, self._Q = yield from self._way.owned.bring(self._shards, self._kept)
            self._stored = whole.mT if self._way.transposed else whole
            del whole
            self._M = self._stored.to(dtype)
        else:
            self._Q = yield from self._cols.whole(self._kept)
            if dtype == self._stored.dtype and self._rows.copies.size == 1:
                self._M = self._stored
                with batch.writing:  # the gradients are zero in a step that is to be left out
                    Q = self._Q.to(dtype)
                    self._MQ = add_and_multiply_(self._stored, batch.grads, Q, gain=self._gain, keep=keep)
            else:
                self._M = added_gradients(batch, norms=False, keep=keep)[0].to(dtype)
        # The dtype in which P and Q become whole.
        self._sent = torch.promote_types(self._M.dtype, batch.weights[0].dtype)

    def left(self) -> Step[Tensor]:
        """Return P ← orthonormalize(M Q), (b, m, r)."""
        partial = self._MQ
        if partial is None:
            partial = product(self._rows.divided(self._M), self._Q.to(self._M.dtype))  # (b, m of this copy, r)
        self._MQ = None
        B = yield from self._rows.reduce(partial)  # (b, share of m, r)
        precision, noise = self._way.arithmetic, self._way.noise
        orthonormalizing = orthonormalize_on_shards(
            B, self._rows.ranks, precision=precision, noise=noise, turn=self._given.turn
        )
        del partial, B  # so that their memory is free when it has wider copies
        self._left: Columns = yield from orthonormalizing
        # In an accelerator's arithmetic, sizes of columns that do not live may be anything.
        if self._given.route == "alone" and precision.times is None:
            self._given.check_finite(self._left.size, "momentum")
        P: Tensor = yield from self._rows.gather(self._left.vectors.to(self._sent))
        return P

    def right(self, P: Tensor) -> Step[Tensor]:
        """Return Q ← R / column norms of R, or its orthonormal or polar factor, with R ← Mᵀ P, (b, n, r); Q is kept."""
        cols = self._cols
        R = yield from cols.reduce(product(cols.divided(self._M.mT), P.to(self._M.dtype)))  # (b, share of n, r)
        name, turn = self._batch.options["right_factor"], self._given.turn
        made: Any = {"left": self._left, "precision": self._way.arithmetic, "noise": self._way.noise}
        if name == "normalize":
            right = yield from unit_columns_on_shards(R, cols.ranks, **made)
        elif name == "orthonormalize":
            right = yield from orthonormalize_on_shards(R.clone(), cols.ranks, turn=turn, **made)
        else:
            right = yield from polar_columns_on_shards(R, cols.ranks, turn=turn, **made)
        self._R, self._right = R, right
        self._T: Tensor | None = None
        found: Tensor = yield from cols.gather(right.vectors.to(self._sent))
        with self._batch.writing:
            overwrite_where_(self._Q, self._batch.gated_mask(right.live.unsqueeze(-2)), found)
            if self._Q is not self._kept and self._way.owned is None:
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
        else:  # for `fade` to send
            P, Q = P.to(of_update), Q.to(of_update)
            if rest is not None:
                update = product_and_rest(P, Q, *rest)
            else:  # so that it lies in memory as the weights do
                update = (Q @ P.mT).mT if self._way.transposed else P @ Q.mT
            self._update = update.to(self._batch.weights[0].dtype)

    def _with_tail(self, Q: Tensor, of_update: torch.dtype) -> Step[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Return Q − diag(c) R, and N with the tail's c."""
        noises = self._way.noise, self._way.arithmetic.noise, rounding_noise(of_update)
        sized = None if self._is_orthonormal else self._right.size.unsqueeze(-2)
        is_whole = self._cols.holders.size == 1
        c, found = yield from tail_factors(
            self._stored,
            self._R if sized is None else self._right.vectors * sized,
            self._right,
            size=self._way.tail_length,
            noise=max(noise.of_matrix for noise in noises),
            cols=self._cols,
            beside=() if is_whole or sized is not None else (self._factor_of_right(),),
        )
        R = Q * sized if sized is not None else self._R if is_whole else Q @ found[0]  # without gathering it as well
        # In 16 bits, c may be beyond the range.
        return (R * -c.mT).to(Q.dtype).add_(Q), (self._stored, c)

    def fade(self, P: Tensor, Q: Tensor) -> Step[None]:
        """M ← momentum·P Rᵀ + residual_momentum·E, or with nesterov N − G/(1 + momentum). It comes last.

        R is not gathered for that, since R = Q T with a small T: the lengths of its columns, or an r × r matrix.
        """
        momentum, residual = self._batch.options["momentum"], self._batch.options["residual_momentum"]
        if residual is not None:
            if not self._is_orthonormal:
                P = P * self._given.gated(self._right.size).unsqueeze(-2)
            else:
                T = self._given.gated((yield from self._factor_of_right()))
                P, Q = (P @ T.mT, Q) if self._rows.size < self._cols.size else (P, Q @ T)
            with self._batch.writing:
                if residual != 1:
                    self._stored.mul_(1 - self._given.gated(1 - residual))
                subtract_product_(self._stored, P, Q, by=residual - momentum, dtype=self._M.dtype)
        elif self._batch.options["nesterov"]:
            with self._batch.writing:
                add_each(self._shards, self._given.grads, -self._gain / (1 + momentum))
        if self._way.owned is not None:
            del P, Q
            yield from self._send_back()

    def _factor_of_right(self) -> Step[Tensor]:
        """Return T with R = Q T, (b, r, r), of an orthonormal Q."""
        if self._T is None:
            vectors = self._right.vectors
            T = yield from self._cols.ranks.sum(vectors.mT @ self._R.to(vectors.dtype))
            self._T = T.to(self._sent)
        assert self._T is not None
        return self._T

    def _send_back(self) -> Step[None]:
        """Send Q and the update to those whose they are, and M if it is not theirs still, and make the step."""
        owned, M = self._way.owned, None
        assert owned is not None
        if self._feeds_back:
            M = self._stored.mT if self._way.transposed else self._stored
        update = self._update.mT if self._way.transposed else self._update
        returning = owned.send_back(M, update, self._Q, shards=self._shards, kept=self._kept)
        # What is sent takes their memory, and is free itself when it has been sent.
        del M, update, self._update, self._stored, self._Q, self._M, self._left, self._right, self._R
        M, update, kept = yield from returning
        with self._batch.writing:
            if M is not None:
                self._shards.copy_(M)
            self._kept.copy_(kept)
        del M, kept
        self._given.descend(update)


@dataclass(frozen=True)
class _Way:
    """How the work is done, which stays the same as long as options and layout do.

    Attributes:
        transposed: whether rows and columns change places.
        dtype: of the large products.
        arithmetic: of the products that make P orthonormal.
        noise: in M Q and Mᵀ P.
        rows: the side along which P lies.
        cols: the side along which Q lies.
        owned: where others may work on the matrices, the way there and back.
        tail_length: how long a column of the tail is; 0 if there is none.
    """

    transposed: bool
    dtype: torch.dtype
    arithmetic: Arithmetic
    noise: Noise
    rows: Side
    cols: Side
    owned: OwnedMomentum | None
    tail_length: float

    @classmethod
    def of(cls, batch: Batch, stored: Tensor, kept: Tensor) -> "_Way":
        options, transposed = batch.options, is_transposed(batch.layout.shape, batch.options)
        dtype = options["product_dtype"] or compute_dtype(stored.dtype)
        # M is as coarse as it is stored.
        noise = rounding_noise(max(dtype, stored.dtype, key=lambda d: torch.finfo(d).eps))
        precision = options["precision"] or default_precision(dtype, stored.device)
        seen = batch.transposed() if transposed else batch
        # Copies always divide the work on P. That on R is little, unless it is orthonormalized or sums many rows.
        rows, cols, owned = seen.rows(divide=True), seen.cols(divide=False), None
        _check_rank(kept, cols, batch)
        if batch.route == "owners":
            owned = OwnedMomentum(batch, 0 if transposed else 1, kept.shape[-1])
            alone = replace(seen, layout=batch.layout.alone)
            rows, cols = alone.rows(divide=False), alone.cols(divide=False)
        elif options["right_factor"] != "normalize" or _is_quick_to_receive(batch, cols, dtype):
            cols = seen.cols(divide=True)
        length = LowRank().tail_length(batch.layout.shape, options)
        return cls(transposed, dtype, arithmetic(precision, factor_dtype(dtype)), noise, rows, cols, owned, length)


def _is_quick_to_receive(batch: Batch, cols: Side, dtype: torch.dtype) -> bool:
    """Return whether it is quicker to receive a number of R than to compute it."""
    machine, ranks = batch.machine, batch.layout.everyone.ranks
    computing = machine.seconds(2 * cols.opposite, dtype)
    return computing > dtype.itemsize / machine.link(ranks).bandwidth


def _check_rank(kept: Tensor, cols: Side, batch: Batch) -> None:
    r = LowRank().update_rank(batch.layout.shape, batch.options)
    expected = (cols.kept_size(r), r)
    if kept.shape[1:] != expected:
        raise ValueError(
            f"parameter {batch.names[0]!r}: Q should be {expected} by the options of its group, but is "
            f"{tuple(kept.shape[1:])}; its rank and side cannot change once there is state"
        )
