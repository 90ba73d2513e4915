"""Products and sums of matrices, in torch's form or by a Triton kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg.device import device_type
from orthon.linalg.kernels.dispatch import in_triton

# On a CPU, matrices with fewer numbers than this are copied into one tensor, for one operation on all of them.
SMALL = 1 << 12


def add_each(M: Tensor, matrices: Sequence[Tensor], gain: float) -> Tensor:
    """Add gain times each of b matrices (m, n) to those of M (b, m, n) in place, and return M."""
    if device_type(M.device) == "cpu" and M[0].numel() < SMALL:
        M.add_(torch.stack(list(matrices)), alpha=gain)
    elif matrices[0].dtype == M.dtype:
        torch._foreach_add_(M.unbind(), list(matrices), alpha=gain)
    else:
        for into, matrix in zip(M.unbind(), matrices, strict=True):
            into.add_(matrix, alpha=gain)
    return M


def mix_each(
    M: Tensor, matrices: Sequence[Tensor], keep: float | Tensor, gain: float, *, out: Tensor | None = None
) -> Tensor:
    """Return keep·M + gain·matrices in place, or in `out` if that is given.

    Args:
        M: (b, m, n).
        matrices: b matrices (m, n).
        keep: a number, or a tensor with one element on the device of M.
        gain: factor of the matrices.
        out: (b, m, n), in the dtype of M.
    """
    into = M if out is None else out
    if isinstance(keep, Tensor) or gain != 1 or device_type(M.device) != "cpu":
        return add_each(M.mul_(keep) if out is None else torch.mul(M, keep, out=out), matrices, gain)
    if M[0].numel() < SMALL:
        return torch.add(torch.stack(list(matrices)), M, alpha=keep, out=into)
    for matrix, m, o in zip(matrices, M.unbind(), into.unbind(), strict=True):
        torch.add(matrix, m, alpha=keep, out=o)  # in one pass
    return into


def lies_by_columns(X: Tensor) -> bool:
    """Return whether the columns of X (..., m, n) lie together in memory, and its rows do not."""
    return X.stride(-1) != 1 and X.stride(-2) == 1


def product(A: Tensor, B: Tensor) -> Tensor:
    """Return A B (..., m, r) of A (..., m, n) and B (..., n, r). It lies in memory by columns if A does.

    On 2 CPU cores, in float32, this takes 10 to 20 % less time for 192 columns than a result that lies by rows, and a
    third to a half less for 48 columns.
    """
    if lies_by_columns(A):
        return (B.mT @ A.mT).mT
    return A @ B


def add_product_(X: Tensor, A: Tensor, B: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> None:
    """Make X (..., m, n) beta·X + alpha·A Bᵀ, for A (..., m, r) and B (..., n, r), of 2 or 3 dims.

    If X lies in memory by columns, the transposed product is added to its transpose. In bfloat16, a CPU takes sixty
    thousand times as long to add a product to a matrix that lies by columns.
    """
    if lies_by_columns(X):
        X, A, B = X.mT, B, A
    (X.addmm_ if X.ndim == 2 else X.baddbmm_)(A, B.mT, beta=beta, alpha=alpha)


# With more columns, the rows of the product that one Triton program computes do not fit into its registers.
MOST_COLUMNS = 256


def add_and_multiply_(
    M: Tensor, grads: Sequence[Tensor], Q: Tensor, *, gain: float = 1.0, keep: float | Tensor | None = None
) -> Tensor:
    """Overwrite each M with keep·M + gain·G, and return M Q.

    The Triton kernel reads and writes M once for both. It is for Q with at most `MOST_COLUMNS` columns; with more, the
    product takes longer than reading M. The size in `dispatch.CROSSOVERS` is m·n.

    Args:
        M: (b, m, n), with any strides.
        grads: the G, each (m, n), of any floating dtype, with any strides.
        Q: (b, n, r), of the dtype of M.
        gain: factor of the G.
        keep: factor of M, a number or a tensor with one element on the device of M; None for 1.

    Returns:
        (b, m, r), in the dtype of M.
    """
    few, some = Q.shape[-1] <= MOST_COLUMNS, M.numel() and Q.numel()
    if few and some and in_triton("add_and_multiply_", M, M[0].numel()):
        from orthon.linalg.kernels.triton import add_and_multiply as kernel

        return kernel.launch(M if keep is None else M.mul_(keep), grads, Q, gain)
    return product(add_each(M, grads, gain) if keep is None else mix_each(M, grads, keep, gain), Q)


def subtract_product_(
    X: Tensor | Sequence[Tensor],
    P: Tensor,
    Q: Tensor,
    *,
    rate: float | Tensor = 0.0,
    by: float | Tensor = 1.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Overwrite each X with (1 − rate)·X − by·P Qᵀ.

    Torch takes one pass over X if `rate` and `by` are numbers. The Triton kernel always takes one pass, and rounds to
    the dtype of X only once. The size in `dispatch.CROSSOVERS` is m·n.

    Args:
        X: (b, m, n), or b matrices (m, n), with any strides.
        P: (b, m, r), of any floating dtype. It is rounded to `dtype`.
        Q: (b, n, r), as P.
        rate: a number, or a tensor with one element on the device of X.
        by: as `rate`.
        dtype: of the products; by default that of X. Products in another dtype are rounded to it before they are
            subtracted.
    """
    first = X[:1] if isinstance(X, Tensor) else X[0]
    dtype = dtype or first.dtype
    if dtype == first.dtype and in_triton("subtract_product_", X if isinstance(X, Tensor) else first, first.numel()):
        from orthon.linalg.kernels.triton import subtract_product as kernel

        kernel.launch(X, P.to(dtype), Q.to(dtype), rate, by)
        return
    if isinstance(by, Tensor):  # the fused product of torch takes only numbers; Q·by is rounded once, below
        Q, by = Q * by, 1.0
    P, Q = P.to(dtype), Q.to(dtype)
    if isinstance(rate, Tensor) or (rate and dtype != first.dtype):
        torch._foreach_mul_([X] if isinstance(X, Tensor) else list(X), 1 - rate)
        rate = 0.0
    if dtype != first.dtype:
        for x, p, q in zip(X, P.unbind(), Q.unbind(), strict=True):
            x.sub_((q @ p.mT).mT if lies_by_columns(x) else p @ q.mT, alpha=by)
    elif isinstance(X, Tensor):
        add_product_(X, P, Q, beta=1 - rate, alpha=-by)
    else:
        for x, p, q in zip(X, P.unbind(), Q.unbind(), strict=True):
            add_product_(x, p, q, beta=1 - rate, alpha=-by)


def symmetric_product(
    A: Tensor, B: Tensor, *, add: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """Return alpha·A B, or beta·C + alpha·A B, which must be symmetric in exact arithmetic.

    X Xᵀ is symmetric, and so are products of polynomials in one symmetric matrix. The result is symmetric up to
    rounding: libraries sum the entries (i, j) and (j, i) in different orders, depending on the processor. The Triton
    kernel computes the tiles of one triangle and mirrors them, which is half of the operations; within the tiles on the
    diagonal its result, too, is symmetric only up to rounding. The size in `dispatch.CROSSOVERS` is m.

    Args:
        A: (b, m, k), with any strides.
        B: (b, k, m), of the same dtype.
        add: C, (b, m, m), symmetric.
        beta: factor of C.
        alpha: factor of the product.

    Returns:
        (b, m, m), in the dtype of A.
    """
    if in_triton("symmetric_product", A, A.shape[-2]):
        from orthon.linalg.kernels.triton import symmetric_product as kernel

        return kernel.launch(A, B, add, beta, alpha)
    if add is None:
        product = A @ B
        return product if alpha == 1 else product.mul_(alpha)
    return torch.baddbmm(add, A, B, beta=beta, alpha=alpha)
