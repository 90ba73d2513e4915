"""Kinds of gradients that training meets, as sequences of float64 matrices."""

from collections.abc import Callable

import torch
from torch import Tensor

Kind = Callable[[torch.Generator, int, int, int], Tensor]  # generator, rows, columns, step


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def full_rank(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return _randn(g, m, n)


def rank_1(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return _randn(g, m, 1) @ _randn(g, 1, n)


def live_rows(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    G = torch.zeros(m, n, dtype=torch.float64)
    G[:: max(1, m // 3)] = _randn(g, len(G[:: max(1, m // 3)]), n)
    return G


def zero(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return torch.zeros(m, n, dtype=torch.float64)


def zero_at_first(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return _randn(g, m, n) * (step >= 2)


def tiny(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return 1e-10 * _randn(g, m, n)


def vanishing(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return 1e-30 * _randn(g, m, n)


def huge(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return 1e25 * _randn(g, m, n)


def one_huge_singular_value(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
    return 1e3 * _randn(g, m, 1) @ _randn(g, 1, n) + _randn(g, m, n)


def uneven_rows(g: torch.Generator, m: int, n: int, step: int) -> Tensor:
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
    """Return the gradients of several steps."""
    generator = torch.Generator().manual_seed(seed)
    return [KINDS[kind](generator, m, n, step) for step in range(steps)]
