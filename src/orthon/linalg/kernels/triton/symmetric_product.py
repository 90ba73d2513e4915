"""alpha·A B + beta·C, which is symmetric, from the tiles on and below the diagonal."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthon.linalg.kernels.triton.tiles import dot_precision, tiles


@triton.jit
def _kernel(
    a_pointer, b_pointer, c_pointer, out_pointer, m, k, alpha, beta,
    a_batch, a_row, a_col, b_batch, b_row, b_col, c_batch, c_row, c_col,
    HAS_C: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one tile (i, j), and write it there and, transposed, at (j, i)."""
    i, j, batch = tl.program_id(1), tl.program_id(0), tl.program_id(2).to(tl.int64)
    if i < j:  # a mirrored tile
        return
    rows = (i * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    cols = (j * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    inside = (rows[:, None] < m) & (cols[None, :] < m)

    total = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, k, DEPTH):
        inner = (start + tl.arange(0, DEPTH)).to(tl.int64)
        a_place = a_pointer + batch * a_batch + rows[:, None] * a_row + inner[None, :] * a_col
        b_place = b_pointer + batch * b_batch + inner[:, None] * b_row + cols[None, :] * b_col
        a = tl.load(a_place, mask=(rows[:, None] < m) & (inner[None, :] < k), other=0.0)
        b = tl.load(b_place, mask=(inner[:, None] < k) & (cols[None, :] < m), other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    total = total * alpha
    if HAS_C:
        c_place = c_pointer + batch * c_batch + rows[:, None] * c_row + cols[None, :] * c_col
        total += beta * tl.load(c_place, mask=inside, other=0.0).to(tl.float32)

    tile = total.to(out_pointer.dtype.element_ty)
    out = out_pointer + batch * m * m
    tl.store(out + rows[:, None] * m + cols[None, :], tile, mask=inside)
    if i > j:
        mirrored = (cols[:, None] < m) & (rows[None, :] < m)
        tl.store(out + cols[:, None] * m + rows[None, :], tl.trans(tile), mask=mirrored)


def launch(A: Tensor, B: Tensor, C: Tensor | None, beta: float, alpha: float) -> Tensor:
    """Return what `orthon.linalg.kernels.symmetric_product` does."""
    b, m, k = A.shape
    out = torch.empty(b, m, m, dtype=A.dtype, device=A.device)
    if out.numel() == 0:
        return out
    size = tiles(A.dtype)
    count = triton.cdiv(m, size.side)
    other = out if C is None else C
    with torch.cuda.device_of(A):
        _kernel[count, count, b](
            A, B, other, out, m, k, float(alpha), float(beta), *A.stride(), *B.stride(), *other.stride(),
            HAS_C=C is not None, SIDE=size.side, DEPTH=size.depth, PRECISION=dot_precision(), num_warps=size.warps,
        )  # fmt: skip
    return out
