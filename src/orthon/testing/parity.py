"""A rule on ranks against itself in one process: how a case is run, and how it is judged."""

from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orthon.algorithms import RULES
from orthon.algorithms.state import Entry
from orthon.optimizers.mixed import MixedOptimizer
from orthon.testing import layouts
from orthon.testing.layouts import LAYOUTS
from orthon.testing.problems import STEPS, Case, Problem, optimizer_of, weights
from orthon.testing.sources import Source, load

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}  # of the largest entry, at least

# Of every parameter its "weight", and by name what its state has that lies as the parameter does.
Result = list[dict[str, Tensor]]


@cache
def in_one_process(problem: Problem, noise: float = 0.0) -> Result:
    """Return the right result, or that of gradients with relative noise of this size."""
    generator = torch.Generator().manual_seed(2)
    params = [nn.Parameter(weight.start.clone()) for weight in weights(problem)]
    named: list[tuple[str, Tensor]] = [(w.name, param) for w, param in zip(weights(problem), params, strict=True)]
    optimizer = optimizer_of(problem, named)
    for step in range(STEPS):
        for param, weight in zip(params, weights(problem), strict=True):
            gradient = weight.gradients[step]
            drawn = torch.randn(gradient.shape, generator=generator, dtype=torch.float64).to(problem.dtype)
            # Zeros stay zeros: a rule that divides by the size of a row makes an update of any noise.
            param.grad = gradient + noise * gradient.abs().max() * drawn * (gradient != 0)
        optimizer.step()
    return [_held(param, optimizer, problem.rule) for param in params]


@cache
def tolerance(problem: Problem) -> float:
    """Return the relative error that is rounding: small singular values of a momentum amplify it."""
    noisy = in_one_process(problem, 2 * torch.finfo(problem.dtype).eps)
    change = 0.0
    for right, other, weight in zip(in_one_process(problem), noisy, weights(problem), strict=True):
        for what, scale in scales(right, weight.start).items():
            change = max(change, (right[what] - other[what]).abs().max().item() / scale)
    largest = 10 * TOLERANCE[problem.dtype]
    assert change < largest, f"{problem}: rounding of the gradients changes the result by {change:.0e}: a bad problem"
    return max(TOLERANCE[problem.dtype], 5 * change)


def scales(right: dict[str, Tensor], start: Tensor) -> dict[str, float]:
    """Return what errors are relative to: the largest entry of all updates together, and of the state."""
    largest = {what: (x - start if what == "weight" else x).abs().max().item() for what, x in right.items()}
    return {what: scale or 1.0 for what, scale in largest.items()}


def on_this_rank(
    case: Case,
    source: Source | None = None,
    wrong_on: int | None = None,
    wave_memory: float | None = None,
) -> Result:
    """Run the case in a worker and return the local parts.

    Args:
        case: what is run.
        source: where the rule is registered, if it is none of Orthon's.
        wrong_on: a rank whose gradients are to be slightly wrong, if any.
        wave_memory: of the optimizer.
    """
    load(case.problem.rule, source)
    problem, layout, world = case.problem, case.layout, case.problem.world
    params = [nn.Parameter(layouts.build(layout, world, weight.start)) for weight in weights(problem)]
    named: list[tuple[str, Tensor]] = [(w.name, param) for w, param in zip(weights(problem), params, strict=True)]
    compressed = LAYOUTS[layout].compressed
    group = layouts.replica_group(layout, world)
    optimizer = optimizer_of(problem, named, replicas=group, sync_gradients=compressed, wave_memory=wave_memory)
    is_alone = LAYOUTS[layout].plain and group is None
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for param, weight in zip(params, weights(problem), strict=True):
            gradient = gradient_of(case, weight.gradients[step], generator)
            if wrong_on == dist.get_rank():
                layouts.local(gradient)[:1] *= 1 + 1e-7
            param.grad = gradient
        if problem.skips:
            _step_with_a_nan(params, optimizer, here=is_alone or dist.get_rank() == 1)
        optimizer.step()
    if compressed:
        optimizer.consolidate()  # until then every replica has a momentum of its own
    return [{what: layouts.local(x) for what, x in _held(param, optimizer, problem.rule).items()} for param in params]


def _step_with_a_nan(params: list[nn.Parameter], optimizer: MixedOptimizer, *, here: bool) -> None:
    """Make a step in which a gradient has a NaN, perhaps on this rank, and restore the gradients."""
    grads = [param.grad for param in params]
    for param, grad in zip(params, grads, strict=True):
        assert grad is not None
        param.grad = grad.clone()
        if here and layouts.local(grad).numel():
            layouts.local(param.grad)[(-1,) * grad.ndim] = float("nan")
            break
    optimizer.step()
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def gradient_of(case: Case, full: Tensor, generator: torch.Generator) -> Tensor:
    """Return this rank's gradient; compressed replicas have different ones, whose mean is `full`."""
    world = case.problem.world
    if LAYOUTS[case.layout].compressed:
        split = layouts.on_one_replica if case.problem.gradients == "zero on one rank" else layouts.noisy
        local = split(full, layouts.number_of_replicas(case.layout, world), generator)
        full = local[layouts.replica(case.layout, world, dist.get_rank())]
    return layouts.build(case.layout, world, full)


def check(case: Case, results: list[Result]) -> float:
    """Return the largest relative error of the parts that all ranks hold.

    Raises:
        AssertionError: if it is more than rounding, or replicas differ in any bit; the message names the case.
    """
    world, allowed = case.problem.world, tolerance(case.problem)
    same = layouts.replicas_of(case.layout, world)
    largest = 0.0
    for i, weight in enumerate(weights(case.problem)):
        right = in_one_process(case.problem)[i]
        parts = layouts.parts(case.layout, world, tuple(weight.start.shape))
        for what, scale in scales(right, weight.start).items():
            where = f"{case}: {what} of {weight.name!r} {tuple(weight.start.shape)}"
            held = [result[i][what] for result in results]
            errors = [
                _error(held[rank], layouts.cut(right[what], *indices), f"{where}, rank {rank}") / scale
                for rank, indices in enumerate(parts)
            ]
            worst = max(range(world), key=errors.__getitem__)
            assert errors[worst] <= allowed, (
                f"{where}: relative error {errors[worst]:.1e} on rank {worst}, allowed {allowed:.0e}; "
                f"by rank: {', '.join(f'{error:.0e}' for error in errors)}"
            )
            largest = max(largest, errors[worst])
            for first, *others in same:
                for rank in others:
                    assert torch.equal(held[rank], held[first]), (
                        f"{where}: ranks {first} and {rank} hold the same part, but differ by "
                        f"{_error(held[rank], held[first], where):.1e}"
                    )
    return largest


def _held(param: Tensor, optimizer: MixedOptimizer, rule: str) -> dict[str, Tensor]:
    entries = RULES[rule].keeps(tuple(param.shape[:2]), optimizer.param_groups[0])
    alike = [key for key, entry in entries.items() if isinstance(entry, Entry) and entry.side is None]
    return {"weight": param.detach(), **{key: optimizer.state[param][key] for key in alike}}


def _error(actual: Tensor, expected: Tensor, where: str) -> float:
    if actual.numel() == expected.numel() == 0:
        return 0.0  # FSDP2 may have another dimension 0 as well
    assert actual.shape == expected.shape, f"{where}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    error = (actual.double() - expected.double()).abs().max().item()
    return error if error == error else float("inf")  # of a NaN, which would compare as small
