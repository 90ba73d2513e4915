"""What there is to compute where ranks are compared with one process: shapes, gradients, a rule and its options."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.algorithms import RULES
from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding.matrix_view import MatrixView
from orthon.testing.gradients import ON_RANKS

STEPS = 5
LR = 0.1
COPIES = 3  # parameters of the first shape

# Several matrices of the first shape, which are one batch, and one of the second; or a single matrix.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "even": ((16, 24), (24, 16)),
    "even tall": ((24, 16), (16, 24)),
    "uneven": ((13, 10), (10, 21)),
    "empty shards": ((5, 12), (12, 9)),  # torch.chunk makes 3 or 5 pieces of 5 rows, and 5 of 9
    "few rows": ((3, 7), (7, 3)),
    "few columns": ((7, 3), (3, 7)),
    "one matrix": ((14, 20),),
}
# Those of rules that take any shape, besides.
OTHER_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "vectors": ((13,), (3,)),
    "three dims": ((6, 4, 5), (3, 8, 2)),
}
# Parameters that are not one plain matrix each. Layouts cut their first two dims.
VIEWS: dict[str, tuple[tuple[int, ...], MatrixView]] = {
    "experts": ((4, 6, 10), MatrixView()),
    "few experts": ((3, 8, 5), MatrixView()),
    "experts (in, out), gate and up": ((4, 9, 12), MatrixView(transposed=True, blocks=2)),
    "(in, out)": ((12, 20), MatrixView(transposed=True)),
    "query, key, value": ((16, 12), MatrixView(blocks=(8, 4, 4))),
    "tall blocks": ((20, 5), MatrixView(blocks=(12, 8))),
    "blocks of both sides": ((15, 6), MatrixView(blocks=(12, 3))),
    "short blocks of unequal size": ((11, 6), MatrixView(blocks=(2, 5, 4))),
    "heads": ((16, 12), MatrixView(blocks=4)),
    "three heads": ((12, 10), MatrixView(blocks=3)),
    "tall heads": ((18, 4), MatrixView(blocks=3)),
    "heads of columns": ((10, 16), MatrixView(blocks=4, side="columns")),
    "unequal columns": ((10, 15), MatrixView(blocks=(9, 6), side="columns")),
    "convolution": ((8, 5, 2, 2), MatrixView(kind="convolution")),
    "convolution, groups": ((12, 3, 3), MatrixView(kind="convolution", blocks=2)),
    "transposed convolution, groups": ((8, 3, 2), MatrixView(kind="convolution", transposed=True, blocks=2)),
}


@dataclass(frozen=True)
class Problem:
    """What there is to compute, wherever it is computed.

    Attributes:
        rule: the name of a registered rule.
        options: of the rule, besides lr, unless they hold it.
        label: what the options are called in messages.
        shapes: a key of SHAPES, OTHER_SHAPES or VIEWS.
        gradients: a key of `gradients.ON_RANKS`.
        dtype: of weights and gradients.
        world: the number of ranks; where some gradients are zero depends on it.
        skips: whether steps with a NaN are left out. On ranks there is one before each step then.
    """

    rule: str
    options: Mapping[str, Any] = field(hash=False)
    label: str
    shapes: str
    gradients: str
    dtype: torch.dtype
    world: int
    skips: bool = False


@dataclass(frozen=True)
class Case:
    """A problem on a layout, a key of `layouts.LAYOUTS`."""

    layout: str
    problem: Problem

    def __str__(self) -> str:
        p = self.problem
        dtype = str(p.dtype).removeprefix("torch.")
        return f"{p.world} ranks, {self.layout}, {p.shapes}, gradients {p.gradients}, {p.label}, {dtype}"


class Weight(NamedTuple):
    """A parameter before the first step, and its gradient in each step."""

    name: str
    start: Tensor
    gradients: list[Tensor]


def takes_matrices(rule: str) -> bool:
    """Return whether a registered rule updates matrices, and not parameters of any shape."""
    return RULES[rule].work.takes_matrices


@cache
def weights(problem: Problem) -> list[Weight]:
    """Return all parameters, whole, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    if problem.shapes in VIEWS:
        shapes = [VIEWS[problem.shapes][0]] * (COPIES - 1)
    else:
        first, *others = {**SHAPES, **OTHER_SHAPES}[problem.shapes]
        shapes = [*[first] * (COPIES - 1), *others, first] if others else [first]
    result = []
    for i, shape in enumerate(shapes):
        start = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.1).to(problem.dtype)
        flat = (shape[0], math.prod(shape[1:]))
        gradients = ON_RANKS[problem.gradients](generator, flat, problem.world, STEPS)
        result.append(Weight(f"w{i}", start, [gradient.to(problem.dtype).view(shape) for gradient in gradients]))
    return result


def optimizer_of(
    problem: Problem,
    named: list[tuple[str, Tensor]],
    *,
    replicas: dist.ProcessGroup | None = None,
    sync_gradients: bool = False,
    wave_memory: float | None = None,
) -> MixedOptimizer:
    """Return an optimizer of the problem's rule over named parameters."""
    options: dict[str, Any] = {"lr": LR, **problem.options}
    if problem.shapes in VIEWS:
        options["view"] = VIEWS[problem.shapes][1]
    return MixedOptimizer(
        named,
        algorithm=problem.rule,
        options=options,
        replicas=replicas,
        sync_gradients=sync_gradients,
        nonfinite="skip" if problem.skips else "raise",
        wave_memory=wave_memory,
    )
