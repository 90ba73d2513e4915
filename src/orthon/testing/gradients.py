"""Kinds of gradients that training meets."""

from collections.abc import Callable

import torch
from torch import Tensor

Kind = Callable[[torch.Generator, int, int, int], Tensor]  # generator, rows, columns, step


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Of a matrix in one process


def full_rank(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return independent normal numbers."""
    return _randn(g, m, n)


def rank_1(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return a matrix with one direction, another one in each step."""
    return _randn(g, m, 1) @ _randn(g, 1, n)


def live_rows(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return a matrix of which about every third row is not zero, as of an embedding."""
    G = torch.zeros(m, n, dtype=torch.float64)
    G[:: max(1, m // 3)] = _randn(g, len(G[:: max(1, m // 3)]), n)
    return G


def zero(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return zeros."""
    return torch.zeros(m, n, dtype=torch.float64)


def zero_at_first(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return zeros in the first two steps."""
    return _randn(g, m, n) * (step >= 2)


def tiny(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return numbers of 1e-10."""
    return 1e-10 * _randn(g, m, n)


def vanishing(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return numbers whose squares are zero in float32."""
    return 1e-30 * _randn(g, m, n)


def huge(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return numbers whose squares are infinite in float32."""
    return 1e25 * _randn(g, m, n)


def one_huge_singular_value(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return a matrix with one direction far above the others."""
    return 1e3 * _randn(g, m, 1) @ _randn(g, 1, n) + _randn(g, m, n)


def uneven_rows(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    """Return a matrix whose rows differ in size by up to 1000."""
    return torch.logspace(0, -3, m, dtype=torch.float64)[:, None] * _randn(g, m, n)


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        full_rank,
        rank_1,
        live_rows,
        zero,
        zero_at_first,
        tiny,
        vanishing,
        huge,
        one_huge_singular_value,
        uneven_rows,
    )
}


def sequence(kind: str, m: int, n: int, steps: int, seed: int = 0) -> list[Tensor]:
    """Return the gradients of several steps: matrices (m, n) in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [KINDS[kind](generator, m, n, step) for step in range(steps)]


# Of a matrix on ranks

KindOnRanks = Callable[[torch.Generator, tuple[int, int], int, int], list[Tensor]]  # generator, shape, ranks, steps


def normal(g: torch.Generator, shape: tuple[int, int], world: int, steps: int) -> list[Tensor]:
    """Return independent normal numbers."""
    return [_randn(g, *shape) for _ in range(steps)]


def rank_deficient(g: torch.Generator, shape: tuple[int, int], world: int, steps: int) -> list[Tensor]:
    """Return matrices of rank 2 with the same columns, so that a sum of them has rank 2 as well."""
    left = _randn(g, shape[0], 2)
    return [left @ _randn(g, 2, shape[1]) for _ in range(steps)]


def zero_shard(g: torch.Generator, shape: tuple[int, int], world: int, steps: int) -> list[Tensor]:
    """Leave the first half of the rows zero: whole ranks have no gradient, and full rank is out of reach."""
    gradients = normal(g, shape, world, steps)
    for gradient in gradients:
        gradient[: shape[0] // 2] = 0
    return gradients


def zero_on_one_rank(g: torch.Generator, shape: tuple[int, int], world: int, steps: int) -> list[Tensor]:
    """Leave the rows and the columns of the second rank zero."""
    gradients = normal(g, shape, world, steps)
    for gradient in gradients:
        for side in (gradient, gradient.T):
            if len(pieces := torch.chunk(side, world)) > 2:
                pieces[1].zero_()
    return gradients


ON_RANKS: dict[str, KindOnRanks] = {
    "full rank": normal,
    "rank deficient": rank_deficient,
    "zero shard": zero_shard,
    "zero on one rank": zero_on_one_rank,
}
