"""Products of which one triangle is enough, as they are symmetric."""

import torch
from torch import Tensor

from orthon.linalg.kernels.dispatch import in_triton


def symmetric_product(
    A: Tensor, B: Tensor, *, add: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """Return alpha·A B, or beta·C + alpha·A B, of which the caller knows that it is symmetric.

    So are X Xᵀ, and products of polynomials in one symmetric matrix. Triton computes the tiles of one triangle, and
    mirrors them: half of the operations. `Crossover.size` is m.

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
