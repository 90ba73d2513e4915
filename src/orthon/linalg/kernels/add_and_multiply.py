"""Sums that are needed once as such, and once multiplied."""

from collections.abc import Sequence

from torch import Tensor

from orthon.linalg.kernels.dispatch import in_triton
from orthon.linalg.kernels.products import product
from orthon.linalg.kernels.sums import add_each

# Triton keeps a block of rows of the product in registers, while the sum passes through once.
MOST_COLUMNS = 256


def add_and_multiply_(M: Tensor, grads: Sequence[Tensor], Q: Tensor, *, gain: float = 1.0) -> Tensor:
    """Add gain·G to each M in place, and return M Q.

    Triton reads and writes M once for both, where Q has at most `MOST_COLUMNS`; beyond, the product takes longer than
    the memory. `Crossover.size` is m·n.

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
