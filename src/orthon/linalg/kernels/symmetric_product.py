"""Products that are symmetric, so that a kernel may compute only one triangle of them."""

import torch
from torch import Tensor

from orthon.linalg.kernels.dispatch import in_triton


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
