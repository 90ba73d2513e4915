"""Sums of matrices, and their products with another matrix."""

from collections.abc import Sequence

from torch import Tensor

from orthon.linalg.kernels.dispatch import in_triton
from orthon.linalg.kernels.products import product
from orthon.linalg.kernels.sums import add_each

# With more columns, the rows of the product that one Triton program computes do not fit into its registers.
MOST_COLUMNS = 256


def add_and_multiply_(M: Tensor, grads: Sequence[Tensor], Q: Tensor, *, gain: float = 1.0) -> Tensor:
    """Add gain·G to each M in place, and return M Q.

    The Triton kernel reads and writes M once for both. It is for Q with at most `MOST_COLUMNS` columns; with more, the
    product takes longer than reading M. The size in `dispatch.CROSSOVERS` is m·n.

    Args:
        M: (b, m, n), with any strides.
        grads: the G, each (m, n), of any floating dtype, with any strides.
        Q: (b, n, r), of the dtype of M.
        gain: factor of the G.

    Returns:
        (b, m, r), in the dtype of M.
    """
    if Q.shape[-1] <= MOST_COLUMNS and in_triton("add_and_multiply_", M, M[0].numel()):
        from orthon.linalg.kernels.triton import add_and_multiply as kernel

        return kernel.launch(M, grads, Q, gain)
    return product(add_each(M, grads, gain), Q)
