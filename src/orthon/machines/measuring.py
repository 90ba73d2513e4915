"""A short benchmark of this machine: what its products, factorizations, copies and launches reach."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.machines.clock import Clock
from orthon.machines.detect import machine_of
from orthon.machines.links import in_common, measured_links
from orthon.machines.machine import Machine

# Told what is measured next, and which part of all is done, from 0 to 1.
Progress = Callable[[str, float], None]

# The smallest side of the larger and of the smaller matrices.
_SIDES = {"cpu": (768, 48), "gpu": (4096, 256)}
_QUICK = (128, 16)


def measure(
    device: torch.device | str | None = None, *, progress: Progress | None = None, quick: bool = False
) -> Machine:
    """Return this machine as a short benchmark finds it, with the threads that torch has now.

    It takes up to 40 seconds. Under torchrun all ranks must call it together, each for its own device. They measure at
    the same time, so that each finds what is left to it. Then collectives of all ranks are measured, and of those of
    each node. All ranks return the same machine, with the median of their figures.

    What it does not measure is taken from `machine_of`: the memory of a GPU, the smallest kernel of one, and links
    without a process group.

    Args:
        device: the GPU of this process, or "cpu". None for the GPU if there is one.
        progress: called before each measurement with what is measured, and the part of all that is done.
        quick: small sizes, for a rough answer in two seconds.
    """
    chosen = _device(device)
    bench = _Bench(chosen, quick=quick)
    figures = {
        "products": bench.products,
        "products in other dtypes": bench.other_products,
        "factorizations": bench.factorizations,
        "memory": bench.memory,
        "launches": bench.launches,
        "links": bench.links,
    }
    machine = machine_of(chosen)
    for number, (name, figure) in enumerate(figures.items()):
        if progress is not None:
            progress(name, number / len(figures))
        machine = figure(machine)
    if progress is not None:
        progress("done", 1.0)
    return in_common(machine)


def _device(device: torch.device | str | None) -> torch.device:
    if device is not None:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise ValueError(f"measure: device should be one that computes, but is {device!r}")
        return chosen
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class _Bench:
    """The measurements. Each takes a machine and returns it with what has been found.

    Args:
        device: that is measured.
        quick: small sizes.
    """

    def __init__(self, device: torch.device, *, quick: bool) -> None:
        self._device, self._quick = device, quick
        self._is_cpu = device.type == "cpu"
        self._large, self._small = _QUICK if quick else _SIDES["cpu" if self._is_cpu else "gpu"]
        self._clock = Clock(device, seconds=0.02 if quick else 1.0)
        self._generator = torch.Generator(device).manual_seed(0)  # that of the user stays as it is
        self._bytes = 1 << (20 if quick else 26 if self._is_cpu else 30)

    def products(self, machine: Machine) -> Machine:
        """Measure products of float32 matrices with a large and a small side."""
        large, small = (self._product(side, torch.float32, "ieee") for side in (self._large, self._small))
        rate, side = _rate_and_side((self._large, large), (self._small, small))
        return replace(machine, float32=rate, product_side=side)

    def other_products(self, machine: Machine) -> Machine:
        """Measure products in other dtypes. On a CPU, TF32 is float32."""
        more = 1 + machine.product_side / self._large
        float64 = self._product(self._large, torch.float64, "ieee") * more
        bfloat16 = self._product(self._large, torch.bfloat16, "ieee") * more
        tf32 = machine.float32 if self._is_cpu else self._product(self._large, torch.float32, "tf32") * more
        return replace(machine, float64=float64, bfloat16=bfloat16, tf32=tf32)

    def factorizations(self, machine: Machine) -> Machine:
        """Measure a Cholesky factorization, and a triangular solve of four times as many rows, of large and small r."""
        found = []
        for r in (self._large, self._small):
            gram = torch.eye(r, device=self._device).add_(1 / (2 * r))
            rows, info = self._random(4 * r, r), torch.empty((), dtype=torch.int32, device=self._device)
            L, solved = torch.empty_like(gram), torch.empty_like(rows)

            def work(gram: Tensor = gram, L: Tensor = L, rows: Tensor = rows, solved: Tensor = solved) -> None:
                torch.linalg.cholesky_ex(gram, out=(L, info))  # noqa: B023
                torch.linalg.solve_triangular(L.mT, rows, upper=True, left=False, out=solved)

            found.append((r, (r**3 / 3 + 4 * r**3) / self._clock.shortest(work)))
        rate, side = _rate_and_side(*found)
        return replace(machine, factorization=rate, factor_side=side)

    def memory(self, machine: Machine) -> Machine:
        """Measure a sum in place, a transposed copy, and the first use of new memory."""
        x, y = (torch.ones(self._bytes // 4, device=self._device) for _ in range(2))
        bandwidth = 3 * self._bytes / self._clock.shortest(lambda: x.add_(y))
        m = int((self._bytes // 16) ** 0.5)
        X, Y = x[: m * m].view(m, m), y[: m * m].view(m, m)
        reordering = 8 * m * m / self._clock.shortest(lambda: X.copy_(Y.mT))
        touch = 0.0
        if self._is_cpu:
            of_used = self._clock.shortest(lambda: x.fill_(1))
            of_new = self._clock.shortest(lambda: torch.empty(self._bytes // 4).fill_(1))
            touch = max(0.0, of_new - of_used) / self._bytes
        return replace(machine, memory_bandwidth=bandwidth, reordering=reordering, first_touch=touch)

    def launches(self, machine: Machine) -> Machine:
        """Measure how long the host takes for a small operation, and on a CPU for one of two views as well."""
        x = torch.ones(64, device=self._device)
        count = 100 if self._quick else 1000

        def alone() -> None:
            for _ in range(count):
                x.add_(1)

        def of_views() -> None:
            for _ in range(count):
                x[:32].add_(x.view(8, 8)[:4].view(32))

        launch = self._clock.shortest(alone) / count
        if not self._is_cpu:
            return replace(machine, launch=launch)
        pages, page = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
        kernel = self._clock.shortest(of_views) / count
        return replace(machine, launch=launch, kernel=kernel, memory=pages * page / machine.ranks_per_node)

    def links(self, machine: Machine) -> Machine:
        """Measure collectives, where there are other ranks."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return machine
        return measured_links(machine, self._device, quick=self._quick)

    def _product(self, side: int, dtype: torch.dtype, precision: str) -> float:
        """Return the rate of products of which one side is the smallest: that of the result, or that of the sum."""
        m, n = 4 * self._large, self._large
        A, B = self._random(m, n, dtype=dtype), self._random(n, side, dtype=dtype)
        narrow, wide = self._random(m, side, dtype=dtype), self._random(m, n, dtype=dtype)
        with _float32_on_gpus(precision):
            seconds = self._clock.shortest(lambda: torch.mm(A, B, out=narrow))
            seconds += self._clock.shortest(lambda: torch.mm(narrow, B.mT, out=wide))
        return 4 * m * n * side / seconds

    def _random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=self._device, generator=self._generator).to(dtype)


@contextmanager
def _float32_on_gpus(precision: str) -> Iterator[None]:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


def _rate_and_side(large: tuple[int, float], small: tuple[int, float]) -> tuple[float, float]:
    """Return the rate R of the largest matrices and the side s with which half of it is reached.

    A matrix with the smallest side d is taken to reach R / (1 + s/d).

    Args:
        large: the smallest side of large matrices, and their rate.
        small: likewise.
    """
    (d, at_d), (e, at_e) = large, small
    slope = max(0.0, (1 / at_e - 1 / at_d) / (1 / e - 1 / d))  # s / R
    slope = min(slope, 0.5 * d / at_d)  # so that R is at most twice what has been seen
    inverse = 1 / at_d - slope / d
    return 1 / inverse, max(1.0, slope / inverse)
