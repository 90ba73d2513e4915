"""How power iteration goes on a batch of matrices: what stays the same from step to step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.low_rank import LowRank, is_transposed
from orthon.algorithms.owned_momentum import OwnedMomentum
from orthon.linalg import compute_dtype, default_precision, factor_dtype, rounding_noise
from orthon.linalg.arithmetic import Arithmetic, arithmetic
from orthon.linalg.precision import Noise
from orthon.sharding import Side


@dataclass(frozen=True)
class Way:
    """How the work is done, which stays the same as long as options and layout do.

    Attributes:
        transposed: whether rows and columns change places.
        dtype: of the large products.
        sent: in which P and Q become whole.
        arithmetic: of the products that make P orthonormal.
        noise: in M Q and Mᵀ P.
        rows: the side along which P lies.
        cols: the side along which Q lies.
        owned: where others may work on the matrices, the way there and back.
        tail_length: how long a column of the tail is; 0 if there is none.
        is_orthonormal: whether Q has orthonormal columns, and not only columns of unit length.
        feeds_back: whether what the update left out stays in the momentum.
        gain: factor of the gradients, -1 with "maximize".
    """

    transposed: bool
    dtype: torch.dtype
    sent: torch.dtype
    arithmetic: Arithmetic
    noise: Noise
    rows: Side
    cols: Side
    owned: OwnedMomentum | None
    tail_length: float
    is_orthonormal: bool
    feeds_back: bool
    gain: float

    @classmethod
    def of(cls, batch: Batch, momentum: Tensor, Q: Tensor) -> "Way":
        """Return the way of a batch, of which this rank keeps momentum (b, m', n') and right factors (b, n', r)."""
        options, transposed = batch.options, is_transposed(batch.layout.shape, batch.options)
        dtype = options["product_dtype"] or compute_dtype(momentum.dtype)
        # M is as coarse as it is stored.
        noise = rounding_noise(max(dtype, momentum.dtype, key=lambda d: torch.finfo(d).eps))
        precision = options["precision"] or default_precision(dtype, momentum.device)
        is_orthonormal = options["right_factor"] != "normalize"
        seen = batch.transposed() if transposed else batch
        # Copies always divide the work on P. That on R is little, unless it is orthonormalized or sums many rows.
        rows, cols, owned = seen.rows(divide=True), seen.cols(divide=False), None
        _check_rank(Q, cols, batch)
        if batch.route == "owners":
            owned = OwnedMomentum(batch, 0 if transposed else 1, Q.shape[-1])
            alone = replace(seen, layout=batch.layout.alone)
            rows, cols = alone.rows(divide=False), alone.cols(divide=False)
        elif is_orthonormal or _is_quick_to_receive(batch, cols, dtype):
            cols = seen.cols(divide=True)
        return cls(
            transposed=transposed,
            dtype=dtype,
            sent=torch.promote_types(dtype, batch.weights[0].dtype),
            arithmetic=arithmetic(precision, factor_dtype(dtype)),
            noise=noise,
            rows=rows,
            cols=cols,
            owned=owned,
            tail_length=LowRank().tail_length(batch.layout.shape, options),
            is_orthonormal=is_orthonormal,
            feeds_back=options["residual_momentum"] is not None,
            gain=-1.0 if options["maximize"] else 1.0,
        )


def _is_quick_to_receive(batch: Batch, cols: Side, dtype: torch.dtype) -> bool:
    """Return whether it is quicker to receive a number of R than to compute it."""
    machine, ranks = batch.machine, batch.layout.everyone.ranks
    computing = machine.seconds(2 * cols.opposite, dtype)
    return computing > dtype.itemsize / machine.link(ranks).bandwidth


def _check_rank(Q: Tensor, cols: Side, batch: Batch) -> None:
    r = LowRank().update_rank(batch.layout.shape, batch.options)
    expected = (cols.kept_size(r), r)
    if Q.shape[1:] != expected:
        raise ValueError(
            f"parameter {batch.names[0]!r}: Q should be {expected} by the options of its group, but is "
            f"{tuple(Q.shape[1:])}; its rank and side cannot change once there is state"
        )
