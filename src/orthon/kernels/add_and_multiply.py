"""A sum that is needed once as such, and once multiplied."""

from torch import Tensor

from orthon.kernels.dispatch import in_triton

# Triton keeps a block of rows of the product in registers, while the sum passes through once.
MOST_COLUMNS = 256


def add_and_multiply_(M: Tensor, G: Tensor, Q: Tensor, *, gain: float = 1.0) -> Tensor:
    """Add gain·G to M in place, and return M Q.

    Triton reads and writes M once for both, where Q has at most `MOST_COLUMNS`; beyond, the product takes longer than
    the memory. `Crossover.size` is m·n.

    Args:
        M: (m, n), with any strides.
        G: (m, n), of any floating dtype, with any strides.
        Q: (n, r).
        gain: factor of G.

    Returns:
        (m, r), in the dtype of M.
    """
    if Q.shape[-1] <= MOST_COLUMNS and in_triton("add_and_multiply_", M, M.numel()):
        from orthon.kernels.triton import add_and_multiply as kernel

        return kernel.launch(M, G, Q, gain)
    return M.add_(G, alpha=gain) @ Q.to(M.dtype)
