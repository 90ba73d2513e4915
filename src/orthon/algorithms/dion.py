"""Dion: orthonormal updates of low rank from one warm-started power iteration (arXiv 2504.05295)."""

import math

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.lr_scale import lr_factor
from orthon.algorithms.momentum import added_gradients
from orthon.algorithms.options import (
    Group,
    choice,
    choice_or_none,
    float_dtype_or_none,
    integer,
    number,
    own,
    portion,
    structural,
)
from orthon.algorithms.rule import MATRIX_OPTIONS, Rule
from orthon.algorithms.state import Entries, Entry
from orthon.linalg import (
    PRECISIONS,
    check_precision,
    compute_dtype,
    default_precision,
    orthonormalize_on_shards,
    overwrite_where_,
    rounding_noise,
    unit_columns_on_shards,
)
from orthon.linalg.kernels import add_and_multiply_, product, subtract_product_
from orthon.sharding import Layout, Side, Step, worth_sending


def dion(batch: Batch, group: Group) -> Step[None]:
    """Make one step of Dion on matrices X (b, m, n) with momentum M (b, m, n) and right factor Q (b, n, r).

    M ← M + G
    P ← orthonormalize(M Q)                   one warm-started power iteration
    R ← Mᵀ P
    M ← M − (1 − momentum)·P Rᵀ                error feedback: what the update left out stays in M
    Q ← R / column_norms(R)
    X ← (1 − lr·weight_decay)·X − lr·scale·P Qᵀ

    A direction that M does not have, up to rounding, gives no update, and its column of Q stays.
    """
    scale = lr_factor(group["lr_scale"], *batch.layout.shape)
    if _is_transposed(batch.layout.shape, group["orthonormal_side"]):
        batch = batch.transposed()
    stored, kept = batch.stacked_like_weights("momentum"), batch.stacked("Q")  # (b, m, n), (b, n, r)
    orthonormal = group["right_factor"] == "orthonormalize"
    dtype = group["product_dtype"] or compute_dtype(stored.dtype)
    precision = group["precision"] or default_precision(dtype, stored.device)
    noise = rounding_noise(max(dtype, stored.dtype, key=lambda d: torch.finfo(d).eps))  # M is as coarse as it is stored
    # Copies always share the work on P; that on R is little, unless it is orthonormalized, or sums over many rows.
    rows, cols = batch.rows(share=True), batch.cols(share=False)
    if orthonormal or worth_sending(2 * cols.opposite, batch.layout.device):
        cols = batch.cols(share=True)
    _check_rank(kept, cols, batch, group)

    Q = yield from cols.whole(kept)
    M, partial = _accumulate(stored, Q, rows, batch, dtype, group)
    sent = torch.promote_types(M.dtype, batch.weights[0].dtype)  # the dtype in which P and Q become whole
    for i in range(group["power_iterations"]):
        if i > 0:
            partial = product(rows.part(M), Q.to(M.dtype))
        B = yield from rows.reduce(partial)  # (b, share of m, r)
        del partial  # where B is a share of it
        left = yield from orthonormalize_on_shards(B, rows.ranks, precision=precision, noise=noise)
        P = yield from rows.gather(left.vectors.to(sent))  # (b, m, r)
        R = yield from cols.reduce(product(cols.part(M.mT), P.to(M.dtype)))  # (b, share of n, r)
        if orthonormal:
            right = yield from orthonormalize_on_shards(
                R.clone(), cols.ranks, left=left, precision=precision, noise=noise
            )
        else:
            right = yield from unit_columns_on_shards(R, cols.ranks, left=left, precision=precision, noise=noise)
        live = batch.gated_mask(right.live.unsqueeze(-2))
        found = yield from cols.gather(right.vectors.to(sent))  # (b, n, r)
        overwrite_where_(Q, live, found)
    if Q is not kept:
        kept.copy_(cols.keep(Q))

    # P Rᵀ = (P Tᵀ) Qᵀ = P (Q T)ᵀ, with T the lengths of the columns of R, or a triangle: R is not gathered as well.
    PT, QT = P, found
    if not orthonormal:
        PT = P * batch.gated(right.size).unsqueeze(-2)
    else:
        T = yield from cols.ranks.sum(right.vectors.mT @ R.to(right.vectors.dtype))  # (b, r, r)
        T = batch.gated(T).to(sent)
        PT, QT = (P @ T.mT, found) if rows.size < cols.size else (P, found @ T)
    subtract_product_(stored, PT, QT, by=1 - group["momentum"], dtype=M.dtype)

    (lr, rate), cautious = batch.rates(group), group["cautious_weight_decay"]
    batch.decay_and_subtract_product(
        P, found, rate=rate, by=lr * scale, cautious=cautious, dtype=group["product_dtype"]
    )


def _accumulate(
    stored: Tensor, Q: Tensor, rows: Side, batch: Batch, dtype: torch.dtype, group: Group
) -> tuple[Tensor, Tensor]:
    """Add the gradients to M; return it in the dtype of products, and this rank's part of M Q, (b, part of m, r)."""
    if dtype == stored.dtype and rows.copies.size == 1:
        gain = -1.0 if group["maximize"] else 1.0
        return stored, add_and_multiply_(stored, batch.grads, Q.to(dtype), gain=gain)
    M = added_gradients(batch, group, norms=False)[0].to(dtype)
    return M, product(rows.part(M), Q.to(dtype))


def _check_rank(kept: Tensor, cols: Side, batch: Batch, group: Group) -> None:
    rank = dion_rank(batch.layout.shape, group)
    expected = (cols.pieces[cols.others.index] if cols.spreads(rank) else cols.size, rank)
    if kept.shape[1:] != expected:
        raise ValueError(
            f"parameter {batch.names[0]!r}: Q should be {expected} by the options of its group, but is "
            f"{tuple(kept.shape[1:])}; rank and side cannot change once there is state"
        )


def _is_transposed(shape: tuple[int, ...], orthonormal_side: str) -> bool:
    """Return whether P belongs to the columns of the weight. Ties go to the rows, the output side."""
    m, n = shape
    return m > n if orthonormal_side == "short" else m < n


def dion_rank(shape: tuple[int, ...], group: Group) -> int:
    """Return the rank r of Dion's factors for a matrix of this shape."""
    short, multiple = min(shape), group["rank_multiple_of"]
    return min(short, int(multiple * math.ceil(portion(group["rank_fraction"], short) / multiple)))


def _temporaries(layout: Layout, group: Group, dtype: torch.dtype) -> float:
    """Return the bytes of two pairs of factors in float32, of as many as are there in another dtype, and of M in it."""
    m, n = layout.largest
    pairs = 2.05 if dtype.itemsize == 4 else 2.75
    if group["right_factor"] == "orthonormalize":
        pairs += 1
    factors = pairs * (m + n) * dion_rank(layout.shape, group) * max(4, dtype.itemsize)
    if group["product_dtype"] not in (None, dtype):  # and of a product
        factors += 2.0 * m * n * group["product_dtype"].itemsize
    return factors + (m * n * dtype.itemsize if group["cautious_weight_decay"] else 0)


def _compresses(layout: Layout, group: Group) -> bool:
    """Return whether the factors of all power iterations have fewer numbers than the gradient."""
    m, n = layout.largest
    return bool(group["power_iterations"] * (m + n) * dion_rank(layout.shape, group) < m * n)


def _entries(shape: tuple[int, ...], group: Group) -> Entries:
    """Return a zero momentum (m, n) and a random right factor (n, r), or (m, r) if P belongs to the columns."""
    m, n = shape
    side = 0 if _is_transposed((m, n), group["orthonormal_side"]) else 1
    dtype = group["state_dtype"]
    return {
        "momentum": Entry(dtype=dtype, own=True),
        "Q": Entry(side=side, width=dion_rank((m, n), group), dtype=dtype, std=1 / math.sqrt(shape[side])),
    }


def _check_layout(layout: Layout, group: Group) -> None:
    check_precision(group["precision"], layout.device)


RULE = Rule(
    name="dion",
    options={
        **MATRIX_OPTIONS,
        "rank_fraction": own(number(0.25, "in (0, 1]", lambda v: 0 < v <= 1)),
        "rank_multiple_of": own(integer(1, at_least=1)),
        "momentum": number(0.95, "in [0, 1)", lambda v: 0 <= v < 1),
        "right_factor": choice("normalize", "orthonormalize"),
        "orthonormal_side": structural(choice("short", "long")),
        "power_iterations": integer(1, at_least=1),
        "precision": own(choice_or_none(*PRECISIONS)),
        "product_dtype": own(float_dtype_or_none(float16=False)),
    },
    entries=_entries,
    update=dion,
    for_matrices=True,
    rank=dion_rank,
    temporaries=_temporaries,
    compresses=_compresses,
    check_layout=_check_layout,
)
