"""Exact orthonormal factors, for references."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# A direction smaller than this, relative to the matrix, is rounding noise: far above what rounding to the dtype
# under test leaves, far below anything that the kinds of gradients hold.
NOISE = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}


class Factors(Protocol):
    """How a reference finds orthonormal factors. Directions that are rounding noise become zero."""

    def polar(self, U: Tensor) -> Tensor:
        """Return W Vᵀ of U = W S Vᵀ, (m, n)."""
        ...

    def orthonormalize(self, B: Tensor) -> Tensor:
        """Return an orthonormal basis of the columns of B, (m, r)."""
        ...

    def unit_columns(self, R: Tensor) -> Tensor:
        """Return R, (n, r), with columns of length 1."""
        ...


@dataclass(frozen=True)
class Exact:
    """Exact factors, up to rounding.

    Attributes:
        noise: a direction smaller than this, relative to the matrix, becomes zero.
    """

    noise: float = NOISE[torch.float64]

    def polar(self, U: Tensor) -> Tensor:
        """Return the polar factor by a singular value decomposition; rows and columns of zeros stay zeros."""
        O = torch.zeros_like(U)
        rows, cols = U.any(dim=1).nonzero().flatten(), U.any(dim=0).nonzero().flatten()
        if len(rows) > 0:
            W, S, Vt = torch.linalg.svd(U[rows][:, cols] / U.abs().max(), full_matrices=False)
            O[rows[:, None], cols] = W @ torch.diag((self.noise * S[0] < S).to(U.dtype)) @ Vt
        return O

    def orthonormalize(self, B: Tensor) -> Tensor:
        """Orthonormalize the columns one by one; a column that depends on those before it becomes zero."""
        P = torch.zeros_like(B)
        for j in range(B.shape[1]):
            v = B[:, j].clone()
            for _ in range(3):  # again, against what rounding left in
                v -= P @ (P.T @ v)
            if v.norm() > self.noise * B.norm():
                P[:, j] = v / v.norm()
        return P

    def unit_columns(self, R: Tensor) -> Tensor:
        """Divide each column by its length."""
        Q = torch.zeros_like(R)
        for j in range(R.shape[1]):
            if R[:, j].norm() > self.noise * R.norm():
                Q[:, j] = R[:, j] / R[:, j].norm()
        return Q


EXACT = Exact()
