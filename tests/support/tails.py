"""Steps of Dion with a tail, each seen as a whole, and gradients that are hard for it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orthon import Dion
from orthon.testing.gradients import KINDS, Kind

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

FADES: dict[str, Any] = {"right_factor": "orthonormalize", "residual_momentum": None, "nesterov": True}
FEEDS_BACK: dict[str, Any] = {"residual_momentum": 1.0, "nesterov": False}
WAYS: dict[str, dict[str, Any]] = {
    "momentum fades": FADES,
    "feedback, unit columns": {**FEEDS_BACK, "right_factor": "normalize"},
    "part of the feedback, polar": {**FEEDS_BACK, "right_factor": "polar", "residual_momentum": 0.5},
}


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Return independent normal numbers."""
    return torch.randn(*shape, generator=g, dtype=F64)


def basis(g: torch.Generator, rows: int, cols: int) -> Tensor:
    """Return orthonormal columns."""
    return torch.linalg.qr(normal(g, rows, cols)).Q


def falling_by_powers(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return a matrix whose singular values are 1, 1/4, 1/9, ..."""
    k = min(m, n)
    return basis(g, m, k) * torch.arange(1, k + 1, dtype=F64) ** -2 @ basis(g, n, k).mT


def equal_singular_values(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return a matrix of which three quarters of the singular values are 1, and the others 0."""
    k = math.ceil(0.75 * min(m, n))
    return basis(g, m, k) @ basis(g, n, k).mT


def entry_that_is_not_seen(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return one huge entry where all gradients before were zero, so that Q does not see it."""
    G = normal(g, m, n)
    G[0], G[:, 0] = 0, 0
    G[0, 0] = 1e6 * (step == 2)
    return G


def blocks(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return two blocks of very different size on the diagonal."""
    G, h, w = torch.zeros(m, n, dtype=F64), (m + 1) // 2, (n + 1) // 2
    G[:h, :w], G[h:, w:] = normal(g, h, w), 1e-3 * normal(g, m - h, n - w)
    return G


def columns_of_all_sizes(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return columns of 1e-30 to 1e30."""
    return normal(g, m, n) * torch.logspace(-30, 30, n, dtype=F64)


def smallest_numbers(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return the smallest numbers of float32, and zeros."""
    return normal(g, m, n).sign() * (normal(g, m, n) > 0) * 2.0**-149


MORE: tuple[Kind, ...] = (
    falling_by_powers,
    equal_singular_values,
    entry_that_is_not_seen,
    blocks,
    columns_of_all_sizes,
    smallest_numbers,
)
ALL_KINDS: dict[str, Kind] = {**KINDS, **{kind.__name__: kind for kind in MORE}}


def gradients_of(kind: str, shape: tuple[int, int], steps: int = 4, seed: int = 0) -> list[Tensor]:
    """Return the gradients of some steps, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [ALL_KINDS[kind](generator, *shape, step) for step in range(steps)]


class Update:
    """What one step subtracts, with the short side as rows, and Q (n, r)."""

    def __init__(self, update: Tensor, Q: Tensor, tail: float) -> None:
        self.whole = (update if update.shape[0] <= update.shape[1] else update.mT).double()
        self.Q, self.tail = Q.double().clone(), tail
        self.m, self.n, self.r = *self.whole.shape, Q.shape[1]

    @property
    def bound(self) -> float:
        """The largest singular value that it may have."""
        of_Q = torch.linalg.matrix_norm(self.Q, ord=2).item()
        return math.sqrt(of_Q**2 + self.tail**2 * (self.m - self.r))

    def of_tail(self, P: Tensor) -> Tensor:
        """Return the tail: what is orthogonal to the columns of P from the left."""
        return self.whole - P @ (P.mT @ self.whole)


def updates(gradients: list[Tensor], options: dict[str, Any], dtype: torch.dtype = F64) -> Iterator[Update]:
    """Yield what each step of Dion subtracts from a weight of zeros, at a learning rate of 1."""
    param = nn.Parameter(torch.zeros(gradients[0].shape, dtype=dtype))
    optimizer = Dion([("w", param)], lr=1.0, weight_decay=0.0, adjust_lr_fn="none", **options)
    for gradient in gradients:
        param.data.zero_()
        param.grad = gradient.to(dtype)
        optimizer.step()
        assert all(x.isfinite().all() for x in (param, *optimizer.state[param].values())), "all is finite"
        yield Update(-param.detach().clone(), optimizer.state[param]["Q"], options["tail"])
