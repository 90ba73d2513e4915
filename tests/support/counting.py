"""Counting what a step communicates and computes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

aten = torch.ops.aten


# The counter knows no products in place, and no triangular solves.
def _product_in_place(_: Any, a: tuple[int, ...], b: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _solve(a: tuple[int, ...], b: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return math.prod(b) * a[-1]


MORE = {
    aten.addmm_: _product_in_place,
    aten.baddbmm_: _product_in_place,
    aten.linalg_solve_triangular: _solve,
}

# Kind, ranks, and numbers of the whole tensor; of an exchange those that this rank gives.
Counted = list[tuple[str, int, int]]


@contextmanager
def counting() -> Iterator[Counted]:
    """Note every collective that is called."""
    seen: Counted = []
    kinds = {"all_reduce": "sum", "all_to_all_single": "exchange"}
    from orthon.sharding import requests as module

    def spy(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            whole: Tensor = args[1] if name == "all_to_all_single" else args[0]
            seen.append((kinds.get(name, "gather"), dist.get_world_size(kwargs["group"]), whole.numel()))
            return real(*args, **kwargs)

        return call

    before = {name: getattr(dist, name) for name in ("all_reduce", "all_to_all_single")}
    gather = module.gather_into
    try:
        for name, real in before.items():
            setattr(dist, name, spy(name, real))
        module.gather_into = spy("gather", gather)
        yield seen
    finally:
        for name, real in before.items():
            setattr(dist, name, real)
        module.gather_into = gather


def triangle(r: int) -> int:
    """Return the numbers of one triangle of r × r, packed into rectangles."""
    h = (r + 1) // 2
    return h * h + (r - h) + h * (r - h)
