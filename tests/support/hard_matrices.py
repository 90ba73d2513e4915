"""Matrices whose columns are hard to make orthonormal."""

from collections.abc import Callable

import torch
from torch import Tensor


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_singular_values(m: int, r: int, values: Tensor) -> Tensor:
    U, V = torch.linalg.qr(randn(m, r)).Q, torch.linalg.qr(randn(r, r)).Q
    return U * values @ V.T


def _duplicates(m: int, r: int) -> Tensor:
    B = randn(m, r)
    B[:, 1::2] = -3 * B[:, : r // 2 * 2 : 2]
    return B


def _live_rows(m: int, r: int) -> Tensor:
    B = torch.zeros(m, r, dtype=torch.float64)
    B[: r // 2] = randn(r // 2, r)
    return B


def kahan(r: int) -> Tensor:
    """Return Kahan's matrix, made to defeat any method that finds dependence column by column."""
    c = 0.1
    upper = torch.eye(r).double() - c * torch.ones(r, r).double().triu(1)
    return (1 - c * c) ** (0.5 * torch.arange(r).double())[:, None] * upper


MATRICES: dict[str, Callable[[int, int], Tensor]] = {
    "random": randn,
    **{
        f"condition 1e+{c:02d}": lambda m, r, c=c: with_singular_values(m, r, torch.logspace(0, -c, r).double())
        for c in (2, 5, 7, 10)
    },
    "one huge singular value": lambda m, r: with_singular_values(m, r, torch.tensor([1e8] + [1.0] * (r - 1)).double()),
    "half the rank": lambda m, r: with_singular_values(m, r, (torch.arange(r) < r // 2).double()),
    "graded columns": lambda m, r: randn(m, r) * torch.logspace(0, -2, r).double(),
    "nearly parallel": lambda m, r: 1 + 1e-3 * randn(m, r),
    "all ones": lambda m, r: torch.ones(m, r, dtype=torch.float64),
    "duplicate columns": _duplicates,
    "zero columns": lambda m, r: randn(m, r) * (torch.arange(r) % 3 > 0),
    "few live rows": _live_rows,
    "tiny": lambda m, r: 1e-30 * randn(m, r),
    "huge": lambda m, r: 1e30 * randn(m, r),
    "Hilbert": lambda m, r: 1 / (torch.arange(m).double()[:, None] + torch.arange(r).double() + 1),
    "Vandermonde": lambda m, r: (torch.arange(m).double()[:, None] / m) ** torch.arange(r).double(),
    "zero": lambda m, r: torch.zeros(m, r, dtype=torch.float64),
}
RANK: dict[str, Callable[[int], int]] = {
    "half the rank": lambda r: r // 2,
    "duplicate columns": lambda r: r - r // 2,
    "few live rows": lambda r: r // 2,
    "zero columns": lambda r: r - (r + 2) // 3,
    "all ones": lambda r: 1,  # noqa: ARG005
    "zero": lambda r: 0,  # noqa: ARG005
}
# Equal entries make all rounding errors of a sum point the same way.
COHERENT = {"all ones", "Vandermonde"}
FULL = {"random", "condition 1e+02", "graded columns", "nearly parallel", "tiny", "huge"}
