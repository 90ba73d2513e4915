"""M ← M + gain·G and B = M Q, in one pass over M and G."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthon.linalg.kernels.triton.tiles import dot_precision

# One program computes this many rows of the product, which stay in registers. It reads this many bytes of each row of M
# at a time; twice as many, with 256 columns of Q, would not fit into the shared memory of an H100.
_ROWS, _BYTES = 64, 128


@triton.jit
def _kernel(
    m_pointer, g_pointer, q_pointer, out_pointer, m, n, r, gain,
    m_row, m_col, g_row, g_col, q_row, q_col,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute both for one block of rows."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, n, DEPTH):
        inner = (start + tl.arange(0, DEPTH)).to(tl.int64)
        inside = (rows[:, None] < m) & (inner[None, :] < n)
        place = m_pointer + rows[:, None] * m_row + inner[None, :] * m_col
        old = tl.load(place, mask=inside, other=0.0)
        added = tl.load(g_pointer + rows[:, None] * g_row + inner[None, :] * g_col, mask=inside, other=0.0)
        new = (old.to(tl.float32) + gain * added.to(tl.float32)).to(old.dtype)
        tl.store(place, new, mask=inside)
        q_place = q_pointer + inner[:, None] * q_row + cols[None, :] * q_col
        q = tl.load(q_place, mask=(inner[:, None] < n) & (cols[None, :] < r), other=0.0)
        total = tl.dot(new, q.to(old.dtype), total, input_precision=PRECISION)
    place = out_pointer + rows[:, None] * r + cols[None, :]
    tl.store(place, total.to(out_pointer.dtype.element_ty), mask=(rows[:, None] < m) & (cols[None, :] < r))


def launch(M: Tensor, grads: Sequence[Tensor], Q: Tensor, gain: float) -> Tensor:
    """Do what `orthon.linalg.kernels.add_and_multiply_` does, for matrices that are not empty."""
    (b, m, n), r = M.shape, Q.shape[-1]
    out = torch.empty(b, m, r, dtype=M.dtype, device=M.device)
    with torch.cuda.device_of(M):
        for X, G, factor, B in zip(M.unbind(), grads, Q.unbind(), out.unbind(), strict=True):
            _kernel[(triton.cdiv(m, _ROWS),)](
                X, G, factor, B, m, n, r, float(gain), *X.stride(), *G.stride(), *factor.stride(),
                ROWS=_ROWS, DEPTH=_BYTES // M.dtype.itemsize, COLS=max(16, triton.next_power_of_2(r)),
                PRECISION=dot_precision(), num_warps=8,
            )  # fmt: skip
    return out
