"""What a step takes at the least: operations of its products, and bytes that it must read and write."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.cases import Case, Shape
from benchmarks.contenders import Contender
from orthon.linalg import polar_dtype, polar_flops


@dataclass(frozen=True)
class Counts:
    """The work of a step.

    Attributes:
        flops: floating-point operations of matrix products, a multiplication with an addition as two.
        bytes: read and written, each number once.
        dtype: in which the products are computed.
    """

    flops: float
    bytes: float
    dtype: torch.dtype


def counts(contender: Contender, case: Case, *, dtype: torch.dtype, device: torch.device) -> Counts:
    """Return the work of a rank's share of a step, with weights, gradients and state of one dtype.

    The operations of all ranks are divided evenly, and nothing counts what is sent.
    """
    each = [_flops(contender, shape) / case.ranks for shape in case.shapes]
    return Counts(sum(each), _bytes(contender, case, dtype), _product_dtype(contender, case, dtype, device))


def product_flops(shapes: Iterable[Shape], fraction: float) -> float:
    """Return the operations of the large products of the paper's Dion: M Q, Mᵀ P, P Rᵀ and P Qᵀ, 8·m·n·r a matrix."""
    return float(sum(8 * m * n * update_rank((m, n), fraction) for m, n in shapes))


def update_rank(shape: Shape, fraction: float) -> int:
    """Return which part of the shorter side, rounded up."""
    return math.ceil(fraction * min(shape))


def _flops(contender: Contender, shape: Shape) -> float:
    short, long = shape if contender.rule == "dion3" else sorted(shape)  # which selects rows of every matrix
    r = math.ceil(contender.fraction * short)
    if contender.rule == "adamw":
        return 0.0
    if contender.rule == "dion":  # the large products, and a pass of Cholesky QR: a Gram matrix and a solution
        feeds_back = contender.options.get("residual_momentum") is not None  # else there is no P Rᵀ
        factored = short if contender.options.get("right_factor") == "normalize" else short + long
        return product_flops([shape], contender.fraction) * (1 if feeds_back else 3 / 4) + 3.0 * factored * r**2
    if contender.newton_schulz:
        return polar_flops(r, long, method="newton_schulz", route="direct")
    return polar_flops(r, long)


def _bytes(contender: Contender, case: Case, dtype: torch.dtype) -> float:
    """Return bytes of a step: weights and what is kept are read and written, gradients read."""
    kept = {"adamw": 2}.get(contender.rule, 1)  # moments, or the momentum
    numbers = (2 + 1 + 2 * kept) * case.numbers / case.ranks
    if contender.rule == "dion":  # Q
        numbers += sum(2 * max(shape) * update_rank(shape, contender.fraction) for shape in case.shapes) / case.ranks
    of_rows = sum(m for m, _ in case.shapes) if contender.rule in ("normuon", "dion3") else 0
    return numbers * dtype.itemsize + 2 * 4 * of_rows / case.ranks  # moments of rows are in float32


def _product_dtype(contender: Contender, case: Case, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    if contender.rule in ("dion", "adamw"):
        return contender.product_dtype or dtype
    return torch.bfloat16 if contender.newton_schulz else polar_dtype(dtype, device, max(case.shapes, key=math.prod))
