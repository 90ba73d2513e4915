"""X ← (1 − rate)·X − by·P Qᵀ, in one pass over X."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthon.linalg.kernels.triton.tiles import dot_precision, tiles


@triton.jit
def _kernel(
    x_pointer, p_pointer, q_pointer, rate, by, m, n, r,
    x_batch, x_row, x_col, p_batch, p_row, p_col, q_batch, q_row, q_col,
    RATE_IS_THERE: tl.constexpr, BY_IS_THERE: tl.constexpr,
    SIDE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Update one tile of X. If a factor "is there", it is a pointer to a number on the device."""
    batch = tl.program_id(2).to(tl.int64)
    rows = (tl.program_id(1) * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    cols = (tl.program_id(0) * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    if RATE_IS_THERE:
        rate = tl.load(rate).to(tl.float32)
    if BY_IS_THERE:
        by = tl.load(by).to(tl.float32)

    total = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, r, DEPTH):
        inner = (start + tl.arange(0, DEPTH)).to(tl.int64)
        p_place = p_pointer + batch * p_batch + rows[:, None] * p_row + inner[None, :] * p_col
        q_place = q_pointer + batch * q_batch + inner[:, None] * q_col + cols[None, :] * q_row
        p = tl.load(p_place, mask=(rows[:, None] < m) & (inner[None, :] < r), other=0.0)
        q = tl.load(q_place, mask=(inner[:, None] < r) & (cols[None, :] < n), other=0.0)
        total = tl.dot(p, q.to(p.dtype), total, input_precision=PRECISION)
    inside = (rows[:, None] < m) & (cols[None, :] < n)
    place = x_pointer + batch * x_batch + rows[:, None] * x_row + cols[None, :] * x_col
    x = tl.load(place, mask=inside, other=0.0)
    tl.store(place, ((1.0 - rate) * x.to(tl.float32) - by * total).to(x.dtype), mask=inside)


def launch(X: Tensor | Sequence[Tensor], P: Tensor, Q: Tensor, rate: float | Tensor, by: float | Tensor) -> None:
    """Do what `orthon.linalg.kernels.subtract_product_` does."""
    with torch.cuda.device_of(P):
        if isinstance(X, Tensor):
            _launch(X, P, Q, rate, by)
            return
        for x, p, q in zip(X, P.split(1), Q.split(1), strict=True):
            _launch(x[None], p, q, rate, by)


def _launch(X: Tensor, P: Tensor, Q: Tensor, rate: float | Tensor, by: float | Tensor) -> None:
    b, m, n = X.shape
    if X.numel() == 0:
        return
    size = tiles(X.dtype)
    _kernel[triton.cdiv(n, size.side), triton.cdiv(m, size.side), b](
        X, P, Q, _scalar(rate), _scalar(by), m, n, P.shape[-1], *X.stride(), *P.stride(), *Q.stride(),
        RATE_IS_THERE=isinstance(rate, Tensor), BY_IS_THERE=isinstance(by, Tensor),
        SIDE=size.side, DEPTH=size.depth, PRECISION=dot_precision(), num_warps=size.warps,
    )  # fmt: skip


def _scalar(x: float | Tensor) -> float | Tensor:
    return x if isinstance(x, Tensor) else float(x)
