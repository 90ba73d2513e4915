"""Work on a low-rank factor of the momentum: its leading directions, found by power iteration wherever they lie."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.momentum import added_gradients
from orthon.algorithms.options import (
    Group,
    Option,
    choice,
    choice_or_none,
    float_dtype_or_none,
    integer,
    number,
    own,
    portion,
    structural,
)
from orthon.algorithms.state import Entries, Entry
from orthon.algorithms.work import MATRIX_OPTIONS, Work
from orthon.linalg import (
    PRECISIONS,
    Columns,
    check_precision,
    compute_dtype,
    default_precision,
    factor_dtype,
    orthonormalize_on_shards,
    overwrite_where_,
    rounding_noise,
    unit_columns_on_shards,
)
from orthon.linalg.arithmetic import Arithmetic, arithmetic
from orthon.linalg.kernels import add_and_multiply_, product, subtract_product_
from orthon.linalg.precision import Noise
from orthon.sharding import Layout, Side, Step, worth_sending


@dataclass(frozen=True)
class LowRank(Work):
    """Momentum M (m, n) and a right factor Q (n, r), or (m, r) where rows and columns change places."""

    takes_matrices = True
    options: ClassVar[Mapping[str, Option]] = {
        **MATRIX_OPTIONS,
        "rank_fraction": own(number(0.25, "in (0, 1]", lambda v: 0 < v <= 1)),
        "rank_multiple_of": own(integer(1, at_least=1)),
        "right_factor": choice("normalize", "orthonormalize"),
        "orthonormal_side": structural(choice("short", "long")),
        "power_iterations": integer(1, at_least=1),
        "precision": own(choice_or_none(*PRECISIONS)),
        "product_dtype": own(float_dtype_or_none(float16=False)),
    }
    needs = "momentum", "Q"

    def entries(self, shape: tuple[int, ...], options: Group) -> Entries:
        """Return a zero momentum (m, n) and a random right factor (n, r), or (m, r) if P belongs to the columns."""
        side, dtype = 0 if is_transposed(shape, options) else 1, options["state_dtype"]
        return {
            "momentum": Entry(dtype=dtype, own=True),
            "Q": Entry(side=side, width=self.update_rank(shape, options), dtype=dtype, std=1 / math.sqrt(shape[side])),
        }

    def check_layout(self, layout: Layout, options: Group) -> None:
        """Raise a ValueError if the device does not have the arithmetic that is asked for."""
        check_precision(options["precision"], layout.device)

    def update_rank(self, shape: tuple[int, ...], options: Group) -> int:
        """Return r, the rank of Q and of the update."""
        short, multiple = min(shape), options["rank_multiple_of"]
        return min(short, int(multiple * math.ceil(portion(options["rank_fraction"], short) / multiple)))

    def temporaries(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:
        """Return the bytes of two pairs of factors in float32; in another dtype also those of as many, and of M."""
        m, n = layout.largest_shard
        pairs = 2.05 if dtype.itemsize == 4 else 2.75
        if options["right_factor"] == "orthonormalize":
            pairs += 1
        factors = pairs * (m + n) * self.update_rank(layout.shape, options) * max(4, dtype.itemsize)
        if options["product_dtype"] not in (None, dtype):  # and of a product
            factors += 2.0 * m * n * options["product_dtype"].itemsize
        return factors + (m * n * dtype.itemsize if options["cautious_weight_decay"] else 0)

    def compresses(self, layout: Layout, options: Group) -> bool:
        """Return whether the factors of all power iterations have fewer numbers than the gradient."""
        m, n = layout.largest_shard
        return bool(options["power_iterations"] * (m + n) * self.update_rank(layout.shape, options) < m * n)


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
        self._batch, self._stored = (batch.transposed(), stored.mT) if self._way.transposed else (batch, stored)
        self._rows, self._cols = self._way.rows, self._way.cols
        self._dtype, self._is_orthonormal = self._way.dtype, batch.options["right_factor"] == "orthonormalize"

    def add_gradients(self) -> Step[None]:
        """M ← M + G, and the first M Q with it, in one pass where both are of one dtype."""
        self._Q = yield from self._cols.whole(self._kept)
        batch, dtype = self._batch, self._dtype
        self._MQ: Tensor | None = None
        if dtype == self._stored.dtype and self._rows.copies.size == 1:
            gain = -1.0 if batch.options["maximize"] else 1.0
            self._M = self._stored
            with batch.writing:  # the gradients are zero in a step that is to be left out
                self._MQ = add_and_multiply_(self._stored, batch.grads, self._Q.to(dtype), gain=gain)
        else:
            self._M = added_gradients(batch, norms=False)[0].to(dtype)
        # The dtype in which P and Q become whole.
        self._sent = torch.promote_types(self._M.dtype, batch.weights[0].dtype)

    def left(self) -> Step[Tensor]:
        """Return P ← orthonormalize(M Q), (b, m, r)."""
        partial = self._MQ
        if partial is None:
            partial = product(self._rows.divided(self._M), self._Q.to(self._M.dtype))  # (b, m of this copy, r)
        self._MQ = None
        B = yield from self._rows.reduce(partial)  # (b, share of m, r)
        del partial  # where B is a share of it
        precision, noise = self._way.arithmetic, self._way.noise
        self._left: Columns = yield from orthonormalize_on_shards(B, self._rows.ranks, precision=precision, noise=noise)
        P: Tensor = yield from self._rows.gather(self._left.vectors.to(self._sent))
        return P

    def right(self, P: Tensor) -> Step[Tensor]:
        """Return Q ← R / column norms of R, or its orthonormal factor, with R ← Mᵀ P, (b, n, r). Q is kept."""
        cols = self._cols
        R = yield from cols.reduce(product(cols.divided(self._M.mT), P.to(self._M.dtype)))  # (b, share of n, r)
        make, whole = (orthonormalize_on_shards, R.clone()) if self._is_orthonormal else (unit_columns_on_shards, R)
        right = yield from make(
            whole, cols.ranks, left=self._left, precision=self._way.arithmetic, noise=self._way.noise
        )
        self._R, self._right = R, right
        found: Tensor = yield from cols.gather(right.vectors.to(self._sent))
        with self._batch.writing:
            overwrite_where_(self._Q, self._batch.gated_mask(right.live.unsqueeze(-2)), found)
            if self._Q is not self._kept:
                self._kept.copy_(cols.keep(self._Q))
        return found

    def subtract(self, P: Tensor, Q: Tensor, *, by: float) -> Step[None]:
        """M ← M − by·P Rᵀ.

        R is not gathered for that, since R = Q T with a small T: the lengths of its columns, or a triangle.
        """
        if not self._is_orthonormal:
            P = P * self._batch.gated(self._right.size).unsqueeze(-2)
        else:
            T = yield from self._cols.ranks.sum(self._right.vectors.mT @ self._R.to(self._right.vectors.dtype))
            T = self._batch.gated(T).to(self._sent)  # (b, r, r)
            P, Q = (P @ T.mT, Q) if self._rows.size < self._cols.size else (P, Q @ T)
        with self._batch.writing:
            subtract_product_(self._stored, P, Q, by=by, dtype=self._M.dtype)

    def descend(self, P: Tensor, Q: Tensor) -> None:
        """X ← (1 − lr·weight_decay)·X − lr·scale·P Qᵀ."""
        self._batch.descend_product(P, Q, dtype=self._batch.options["product_dtype"], always_finite=True)


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
    """

    transposed: bool
    dtype: torch.dtype
    arithmetic: Arithmetic
    noise: Noise
    rows: Side
    cols: Side

    @classmethod
    def of(cls, batch: Batch, stored: Tensor, kept: Tensor) -> "_Way":
        options, transposed = batch.options, is_transposed(batch.layout.shape, batch.options)
        batch = batch.transposed() if transposed else batch
        dtype = options["product_dtype"] or compute_dtype(stored.dtype)
        # M is as coarse as it is stored.
        noise = rounding_noise(max(dtype, stored.dtype, key=lambda d: torch.finfo(d).eps))
        # Copies always divide the work on P. That on R is little, unless it is orthonormalized or sums many rows.
        rows, cols = batch.rows(divide=True), batch.cols(divide=False)
        if options["right_factor"] == "orthonormalize" or worth_sending(2 * cols.opposite, batch.layout.device):
            cols = batch.cols(divide=True)
        _check_rank(kept, cols, batch)
        precision = options["precision"] or default_precision(dtype, stored.device)
        return cls(transposed, dtype, arithmetic(precision, factor_dtype(dtype)), noise, rows, cols)


def is_transposed(shape: tuple[int, ...], options: Group) -> bool:
    """Return whether P belongs to the columns of the weight. Ties go to the rows, the output side."""
    m, n = shape
    return m > n if options["orthonormal_side"] == "short" else m < n


def _check_rank(kept: Tensor, cols: Side, batch: Batch) -> None:
    r = LowRank().update_rank(batch.layout.shape, batch.options)
    expected = (cols.kept_size(r), r)
    if kept.shape[1:] != expected:
        raise ValueError(
            f"parameter {batch.names[0]!r}: Q should be {expected} by the options of its group, but is "
            f"{tuple(kept.shape[1:])}; its rank and side cannot change once there is state"
        )
