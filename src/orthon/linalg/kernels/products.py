"""Products whose result lies in memory as is fastest for their operands."""

from torch import Tensor


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
