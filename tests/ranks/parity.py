"""An optimizer on ranks against itself in one process: the cases, how one is run, and how it is judged."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import orthon
from orthon import MatrixView
from tests.ranks import layouts
from tests.ranks.layouts import LAYOUTS

STEPS = 5
LR = 0.1

# Several matrices of the first shape, which are one batch, and one of the second.
SHAPES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "even": ((16, 24), (24, 16)),
    "even tall": ((24, 16), (16, 24)),
    "uneven": ((13, 10), (10, 21)),
    "empty shards": ((5, 12), (12, 9)),  # torch.chunk makes 3 or 5 pieces of 5 rows, and 5 of 9
    "few rows": ((3, 7), (7, 3)),
    "few columns": ((7, 3), (3, 7)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rank 1": {"rank_fraction": 0.01},
    "three power iterations": {"power_iterations": 3},
    "orthonormalize": {"right_factor": "orthonormalize", "rank_fraction": 0.5},
    "long side": {"orthonormal_side": "long", "rank_fraction": 0.5},
    "full rank": {"rank_fraction": 1.0},
    "long side, orthonormalize, two power iterations": {
        "orthonormal_side": "long",
        "right_factor": "orthonormalize",
        "power_iterations": 2,
        "rank_fraction": 0.5,
    },
}
EXACT = {"polar": "svd"}
# The other rules, with the exact polar factor: optimizer and options.
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "muon": ("Muon", {**EXACT}),
    "muon by owners, no nesterov": ("Muon", {**EXACT, "polar_route": "owners", "nesterov": False}),
    "muon ema, cautious": ("Muon", {**EXACT, "ema": True, "cautious_weight_decay": True, "weight_decay": 0.5}),
    "normuon": ("NorMuon", {**EXACT}),
    "dion2": ("Dion2", {**EXACT}),
    "dion2 half, cautious": (
        "Dion2",
        {**EXACT, "fraction": 0.5, "cautious_weight_decay": True, "weight_decay": 0.5, "lr_scale_by_fraction": True},
    ),
    "dion2 random": ("Dion2", {**EXACT, "selection": "random", "fraction": 0.5}),
    "dion3": ("Dion3", {**EXACT, "fraction": 0.5}),
    "dion3 random": ("Dion3", {**EXACT, "selection": "random"}),
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
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}  # of the largest entry, at least
COPIES = 3  # matrices of the first shape

Result = list[tuple[Tensor, Tensor]]  # weight and momentum of every matrix


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def full_rank(generator: torch.Generator, shape: tuple[int, int], world: int) -> list[Tensor]:
    return [_randn(generator, *shape) for _ in range(STEPS)]


def rank_deficient(generator: torch.Generator, shape: tuple[int, int], world: int) -> list[Tensor]:
    left = _randn(generator, shape[0], 2)  # the same in all steps, so that the momentum's rank is 2 as well
    return [left @ _randn(generator, 2, shape[1]) for _ in range(STEPS)]


def zero_shard(generator: torch.Generator, shape: tuple[int, int], world: int) -> list[Tensor]:
    """Leave the first half of the rows zero: whole ranks have no gradient, and full rank is out of reach."""
    gradients = full_rank(generator, shape, world)
    for gradient in gradients:
        gradient[: shape[0] // 2] = 0
    return gradients


def zero_on_one_rank(generator: torch.Generator, shape: tuple[int, int], world: int) -> list[Tensor]:
    """Leave the rows and the columns of the second rank zero; compressed replicas: see `gradient_of`."""
    gradients = full_rank(generator, shape, world)
    for gradient in gradients:
        for side in (gradient, gradient.T):
            if len(pieces := torch.chunk(side, world)) > 2:
                pieces[1].zero_()
    return gradients


GRADIENTS: dict[str, Callable[[torch.Generator, tuple[int, int], int], list[Tensor]]] = {
    "full rank": full_rank,
    "rank deficient": rank_deficient,
    "zero shard": zero_shard,
    "zero on one rank": zero_on_one_rank,
}


@dataclass(frozen=True)
class Problem:
    """What there is to compute, wherever it is computed."""

    shapes: str
    gradients: str
    options: str
    dtype: torch.dtype
    world: int  # where some gradients are zero depends on it


@dataclass(frozen=True)
class Case:
    """A problem on a layout."""

    layout: str
    problem: Problem

    def __str__(self) -> str:
        p = self.problem
        dtype = str(p.dtype).removeprefix("torch.")
        return f"{p.world} ranks, {self.layout}, {p.shapes}, gradients {p.gradients}, {p.options}, {dtype}"


def family_cases(world: int) -> list[Case]:
    """Return every layout with every other rule, shapes, gradients and dtypes in turn."""
    result = []
    for i, layout in enumerate(layouts.layouts_on(world)):
        for j, rule in enumerate(FAMILY):
            for k in range(3):
                turn = i + 5 * j + 7 * k
                shapes, gradients = list(SHAPES)[turn % len(SHAPES)], _gradients(rule, layout, i + k)
                # Float32 tells small singular values of low rank from noise, but not well.
                dtype = torch.float32 if turn % 5 == 4 and gradients == "full rank" else torch.float64
                result.append(Case(layout, Problem(shapes, gradients, rule, dtype, world)))
    return result


def _gradients(rule: str, layout: str, turn: int, *, views: bool = False) -> str:
    """Return a kind of gradients in turn.

    NorMuon and Dion3 divide rows by their size, of at least 1e-8. The mean of replicas' gradients leaves rounding in
    rows of zeros, and they make an update of that, as they should; cautious decay looks at its sign. Every rule makes
    an update of a head or expert of such zeros.
    """
    if LAYOUTS[layout].compressed and (views or "cautious" in rule or rule.startswith(("normuon", "dion3"))):
        return "full rank"
    return list(GRADIENTS)[turn % len(GRADIENTS)]


def view_cases(world: int) -> list[Case]:
    """Return every layout with every view, rules and gradients in turn."""
    rules = [*OPTIONS, *FAMILY]
    result = []
    for i, layout in enumerate(layouts.layouts_on(world)):
        for j, view in enumerate(VIEWS):
            for k in range(2):
                rule = rules[(i + 3 * j + 5 * k) % len(rules)]
                gradients = _gradients(rule, layout, i + j + k, views=True)
                result.append(Case(layout, Problem(view, gradients, rule, torch.float64, world)))
    return result


def cases(world: int) -> list[Case]:
    """Return every layout with every shape and every kind of gradient, the options and dtypes in turn."""
    result = []
    for i, layout in enumerate(layouts.layouts_on(world)):
        for k in range(len(SHAPES) * len(GRADIENTS)):
            shapes, gradients = list(SHAPES)[k // len(GRADIENTS)], list(GRADIENTS)[k % len(GRADIENTS)]
            options = list(OPTIONS)[(i + k) % len(OPTIONS)]
            dtype = torch.float32 if (i + k) % 5 == 4 else torch.float64
            result.append(Case(layout, Problem(shapes, gradients, options, dtype, world)))
    return result


def representative_cases(world: int) -> list[Case]:
    """Return one or two cases of every layout, spread over shapes, gradients, options and dtypes."""
    everything, n = cases(world), len(SHAPES) * len(GRADIENTS)
    chosen = []
    for i in range(len(everything) // n):
        picks = [5 * i % n] if i % 3 else [5 * i % n, (5 * i + 9) % n]  # 5 goes round all n
        chosen += [everything[i * n + pick] for pick in sorted(picks)]
    return chosen


@cache
def matrices(problem: Problem) -> list[tuple[str, Tensor, list[Tensor]]]:
    """Return name, start and gradients of every parameter, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    if problem.shapes in VIEWS:
        shapes = [VIEWS[problem.shapes][0]] * (COPIES - 1)
    else:
        first, other = SHAPES[problem.shapes]
        shapes = [*[first] * (COPIES - 1), other, first]
    result = []
    for i, shape in enumerate(shapes):
        start = (0.1 * _randn(generator, *shape)).to(problem.dtype)
        gradients = GRADIENTS[problem.gradients](generator, (shape[0], math.prod(shape[1:])), problem.world)
        result.append((f"w{i}", start, [gradient.to(problem.dtype).view(shape) for gradient in gradients]))
    return result


def optimizer_of(problem: Problem, named: Any, **distributed: Any) -> orthon.MixedOptimizer:
    name, options = FAMILY.get(problem.options) or ("Dion", OPTIONS[problem.options])
    view = VIEWS[problem.shapes][1] if problem.shapes in VIEWS else None
    made: orthon.MixedOptimizer = getattr(orthon, name)(named, lr=LR, view=view, **options, **distributed)
    return made


@cache
def in_one_process(problem: Problem, noise: float = 0.0) -> Result:
    """Return the right result, or that of gradients with relative noise of this size."""
    generator = torch.Generator().manual_seed(2)
    named = [(name, nn.Parameter(start.clone())) for name, start, _ in matrices(problem)]
    optimizer = optimizer_of(problem, named)
    for step in range(STEPS):
        for (_, param), (_, _, gradients) in zip(named, matrices(problem), strict=True):
            gradient = gradients[step]
            error = noise * gradient.abs().max() * _randn(generator, *gradient.shape).to(problem.dtype)
            if problem.options in FAMILY or problem.shapes in VIEWS:
                # A row that is nearly zero counts in NorMuon, and a head of zeros in every rule; zeros stay zeros.
                error *= gradient != 0
            param.grad = gradient + error
        optimizer.step()
    return [(param.detach(), optimizer.state[param]["momentum"]) for _, param in named]


@cache
def tolerance(problem: Problem) -> float:
    """Return the relative error that is rounding: small singular values of a momentum amplify it."""
    noisy = in_one_process(problem, 2 * torch.finfo(problem.dtype).eps)
    change = 0.0
    for right, other, (_, start, _) in zip(in_one_process(problem), noisy, matrices(problem), strict=True):
        for scale, a, b in zip(scales(right, start), right, other, strict=True):
            change = max(change, (a - b).abs().max().item() / scale)
    largest = 10 * TOLERANCE[problem.dtype]
    assert change < largest, f"{problem}: rounding of the gradients changes the result by {change:.0e}: a bad problem"
    return max(TOLERANCE[problem.dtype], 5 * change)


def scales(right: tuple[Tensor, Tensor], start: Tensor) -> tuple[float, float]:
    """Return what errors are relative to: the largest entry of all updates together, and of the momentum."""
    weight, momentum = right
    return (weight - start).abs().max().item(), momentum.abs().max().item()


def on_this_rank(case: Case, wrong_on: int | None = None) -> Result:
    """Run the case in a worker and return the local parts; with a slightly wrong gradient on one rank if asked."""
    problem, layout = case.problem, case.layout
    world = problem.world
    named = [(name, nn.Parameter(layouts.build(layout, world, start))) for name, start, _ in matrices(problem)]
    distributed: dict[str, Any] = {}
    if LAYOUTS[layout].replicas:
        distributed["replicas"] = layouts.replica_group(layout, world)
    if LAYOUTS[layout].compressed:
        distributed["sync_gradients"] = True
    optimizer = optimizer_of(problem, named, **distributed)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for (_, param), (_, _, gradients) in zip(named, matrices(problem), strict=True):
            param.grad = gradient_of(case, gradients[step], generator)
            if wrong_on == dist.get_rank():
                layouts.local(param.grad)[:1] *= 1 + 1e-7
        optimizer.step()
    if LAYOUTS[layout].compressed:
        optimizer.consolidate()  # until then every replica has a momentum of its own
    return [(layouts.local(param.detach()), layouts.local(optimizer.state[param]["momentum"])) for _, param in named]


def gradient_of(case: Case, full: Tensor, generator: torch.Generator) -> Tensor:
    """Return this rank's gradient; compressed replicas have different ones, whose mean is `full`."""
    world = case.problem.world
    if LAYOUTS[case.layout].compressed:
        split = layouts.on_one_replica if case.problem.gradients == "zero on one rank" else layouts.noisy
        local = split(full, layouts.number_of_replicas(case.layout, world), generator)
        full = local[layouts.replica(case.layout, world, dist.get_rank())]
    return layouts.build(case.layout, world, full)


def check(case: Case, results: list[Result]) -> None:
    """Raise an AssertionError, which names the case, unless all ranks hold their parts of the right result."""
    world, allowed = case.problem.world, tolerance(case.problem)
    same = layouts.replicas_of(case.layout, world)
    for i, (name, start, _) in enumerate(matrices(case.problem)):
        right = in_one_process(case.problem)[i]
        parts = layouts.parts(case.layout, world, (start.shape[0], start.shape[1]))
        for k, (what, scale) in enumerate(zip(("weight", "momentum"), scales(right, start), strict=True)):
            where = f"{case}: {what} of {name!r} {tuple(start.shape)}"
            held = [result[i][k] for result in results]
            errors = [
                _error(held[rank], right[k][rows][:, cols], f"{where}, rank {rank}") / scale
                for rank, (rows, cols) in enumerate(parts)
            ]
            worst = max(range(world), key=errors.__getitem__)
            assert errors[worst] <= allowed, (
                f"{where}: relative error {errors[worst]:.1e} on rank {worst}, allowed {allowed:.0e}; "
                f"by rank: {', '.join(f'{error:.0e}' for error in errors)}"
            )
            for first, *others in same:
                for rank in others:
                    assert torch.equal(held[rank], held[first]), (
                        f"{where}: ranks {first} and {rank} hold the same part, but differ by "
                        f"{_error(held[rank], held[first], where):.1e}"
                    )


def _error(actual: Tensor, expected: Tensor, where: str) -> float:
    if actual.numel() == expected.numel() == 0:
        return 0.0  # FSDP2 may have another dimension 0 as well
    assert actual.shape == expected.shape, f"{where}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    error = (actual.double() - expected.double()).abs().max().item()
    return error if error == error else float("inf")  # of a NaN, which would compare as small
