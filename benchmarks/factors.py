"""Polar factors and orthonormalization alone, in the ways that could be taken."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from benchmarks.cases import Shape, fake_ranks
from benchmarks.timing import in_a_row
from orthon.linalg import polar, polar_flops, polar_on_shards, shards_cost
from orthon.sharding import Ranks, Step, run
from orthon.sharding.line import Line

Product = Callable[[Tensor], Tensor]


def polar_candidates(shape: Shape, device: torch.device, *, ranks: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield for each way to the polar factor of a bfloat16 matrix its time, rate, and distance from orthonormal rows.

    Args:
        shape: of the matrix.
        device: where.
        ranks: one of the ways is that of one of so many, each with a share of the longer side; nothing is sent, and its
            result means nothing.
        seconds: for each way.
    """
    short, long = sorted(shape)
    U = torch.randn(short, long, device=device).bfloat16()
    with fake_ranks(ranks):
        yield from _timed_ways(U, ranks, seconds)


def _timed_ways(U: Tensor, ranks: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a line for each way; in `fake_ranks`."""
    (short, long), device = U.shape, U.device
    share = U[:, : -(-long // ranks)].mT.contiguous()
    sums, flops_on_shards = shards_cost(len(share), short)
    assert dist.group.WORLD is not None
    everyone = Ranks(range(ranks), [Line(range(ranks), 0, dist.group.WORLD)])
    ways: tuple[tuple[str, Callable[[], Tensor], float], ...] = (
        ("products of the matrix", lambda: polar(U, route="direct"), polar_flops(short, long, route="direct")),
        ("Gram matrix", lambda: polar(U, route="gram"), polar_flops(short, long, route="gram")),
        (f"shard of {ranks} ranks, {sums} sums", lambda: _on_shards(share, everyone), flops_on_shards),
        (
            "torch's Newton-Schulz",
            lambda: _zeropower_via_newtonschulz(U, (3.4445, -4.775, 2.0315), 5, 1e-7),
            polar_flops(short, long, method="newton_schulz", route="direct"),
        ),
    )
    for way, work, flops in ways:
        taken = statistics.median(in_a_row([work], device, repeats=30, seconds=seconds))
        O = work().float()
        distance = None
        if O.shape == U.shape:
            distance = float((O @ O.mT - torch.eye(short, device=device)).norm() / short**0.5)
        yield {
            "matrix": f"{short}×{long}",
            "way": way,
            "ms": taken * 1e3,
            "tflop_per_s": flops / taken / 1e12,
            "distance": distance,
        }


def _on_shards(share: Tensor, everyone: Ranks) -> Tensor:
    """Return this rank's rows (m, n) of a polar factor by the route of shards."""
    found: list[Tensor] = []

    def step() -> Step[None]:
        found.append((yield from polar_on_shards(share[None], everyone)))

    run([[step()]], at_once=1)
    return found[0][0]


def orthonormalizations(shape: Shape, device: torch.device, *, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield for each way to form Gram matrices the time of an orthonormalization, and its error ‖PᵀP − I‖ (largest).

    Three passes of Cholesky QR in float32, the first two shifted, of a matrix of condition 1e3; only the Gram
    matrices differ.

    Args:
        shape: of the matrix, tall.
        device: where.
        seconds: for each way.
    """
    m, r = shape
    Q = torch.linalg.qr(torch.randn(r, r, device=device)).Q
    B = torch.randn(m, r, device=device) / m**0.5 @ (Q * torch.logspace(0, -3, r, device=device))
    for name, (product, eps) in _PRODUCTS.items():
        work = partial(_cholesky_qr, B, product, eps)
        taken = statistics.median(in_a_row([work], device, repeats=20, seconds=seconds))
        P = work().double()
        error = (P.mT @ P - torch.eye(r, dtype=P.dtype, device=device)).abs().max()
        yield {"matrix": f"{m}×{r}", "gram_in": name, "ms": taken * 1e3, "error": float(error)}


def _cholesky_qr(B: Tensor, product: Product, eps: float) -> Tensor:
    """Return the orthonormal factor of B (m, r), with Gram matrices by `product`, which errs by eps."""
    P = B
    for last in (False, False, True):
        gram = product(P)
        size = gram.diagonal().sqrt()
        gram = gram / size / size[:, None]
        gram.diagonal().fill_(1.0 if last else 1 + 2 * eps * len(gram))
        L = torch.linalg.cholesky_ex(gram).L
        P = torch.linalg.solve_triangular(L.mT, P / size, upper=True, left=False)
    return P


def _gram_float32(X: Tensor) -> Tensor:
    return X.mT @ X


def _gram_tf32(X: Tensor) -> Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return X.mT @ X
    finally:
        torch.set_float32_matmul_precision(before)


def _gram_bfloat16(X: Tensor) -> Tensor:
    return _mm_float32(X.bfloat16(), X.bfloat16())


def _gram_split(X: Tensor) -> Tensor:
    """Return the Gram matrix by three products in bfloat16, of the upper and the lower half of each number's digits."""
    high = X.bfloat16()
    low = (X - high).bfloat16()
    cross = _mm_float32(high, low)
    return _mm_float32(high, high) + cross + cross.mT


def _mm_float32(X: Tensor, Y: Tensor) -> Tensor:
    """Return Xᵀ Y of bfloat16 matrices, summed up and returned in float32."""
    if X.device.type == "cuda":
        return torch.mm(X.mT, Y, out_dtype=torch.float32)
    return X.float().mT @ Y.float()


_PRODUCTS: dict[str, tuple[Product, float]] = {
    "float32": (_gram_float32, 2.0**-23),
    "TF32": (_gram_tf32, 2.0**-10),
    "bfloat16": (_gram_bfloat16, 2.0**-7),
    "3 × bfloat16": (_gram_split, 2.0**-15),
}
