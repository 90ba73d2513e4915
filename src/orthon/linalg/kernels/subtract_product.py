"""Matrices that decay, from which low-rank products are subtracted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg.kernels.dispatch import in_triton
from orthon.linalg.kernels.products import add_product_, lies_by_columns


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
