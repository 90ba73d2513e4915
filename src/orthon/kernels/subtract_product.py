"""A low-rank product subtracted from a matrix that decays."""

from torch import Tensor

from orthon.kernels.dispatch import in_triton


def subtract_product_(X: Tensor, P: Tensor, Q: Tensor, *, rate: float | Tensor = 0.0, by: float | Tensor = 1.0) -> None:
    """Overwrite X with (1 − rate)·X − by·P Qᵀ.

    Torch does so in one pass over X if the factors are numbers; Triton also if they are tensors on the device, and
    rounds to the dtype of X once. `Crossover.size` is b·m·n.

    Args:
        X: (b, m, n) or (m, n), with any strides.
        P: (b, m, r) or (m, r), of the dtype of X.
        Q: (b, n, r) or (n, r), of the dtype of X.
        rate: a number, or a tensor with one element on the device of X.
        by: likewise.
    """
    if in_triton("subtract_product_", X, X.numel()):
        from orthon.kernels.triton import subtract_product as kernel

        kernel.launch(X, P, Q, rate, by)
        return
    if isinstance(by, Tensor):  # torch's fused product takes numbers alone
        Q, by = Q * by, 1.0
    if isinstance(rate, Tensor):
        X.mul_(1 - rate)
        rate = 0.0
    subtract = X.baddbmm_ if X.ndim == 3 else X.addmm_
    subtract(P.to(X.dtype), Q.mT.to(X.dtype), beta=1 - rate, alpha=-by)
