"""Whether a step computes what it should, before it is timed."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.cases import Case, Shape, parameters
from benchmarks.contenders import Contender
from orthon.linalg import polar_dtype

# Relative errors of the change of the weights, by the dtype that computes: a wrong formula errs by far more, and a step
# that does nothing by 1. Polynomials amplify rounding, that in bfloat16 by a lot (docs/polar_factors.md).
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
POLAR_BOUNDS = {torch.float32: 3e-3, torch.bfloat16: 3e-1}

# At full rank so many of the smallest directions may count as rounding noise, and are left out then. In 16 bits they
# are more, so that the check is made in float32.
LEFT_OUT = 3

# Matrices of more numbers are checked in smaller ones of the same aspect.
LARGEST = {"cpu": 1 << 20, "cuda": 1 << 23}


class WrongStepError(Exception):
    """A step is not what the reference says."""


def check(contender: Contender, case: Case, *, dtype: torch.dtype, device: torch.device) -> float:
    """Return the relative error of the second step on fresh random matrices, the largest over the shapes of a case.

    The second one, since the first makes the state.

    Raises:
        WrongStepError: if it is too large, or not a number.
    """
    shapes = tuple(dict.fromkeys(_within(shape, LARGEST[device.type]) for shape in case.shapes))
    if contender.rule == "dion" and contender.fraction == 1:
        dtype = torch.float32
    params = parameters(Case(case.name, shapes), dtype=dtype, device=device)
    optimizer = contender.optimizer(params)
    for group in optimizer.param_groups:  # so that the change of the weights is not small beside them
        group["lr"], group["weight_decay"] = 1.0, 0.1
    optimizer.step()
    return check_step(contender, optimizer.step, optimizer, params)


def check_step(
    contender: Contender,
    step: Callable[[], object],
    optimizer: torch.optim.Optimizer,
    params: Sequence[nn.Parameter],
) -> float:
    """Make one step, with fresh gradients, and return its relative error.

    Memory that the step asks for holds NaNs until it is written, so that what it leaves out is seen.

    Args:
        contender: whose step it is.
        step: makes one.
        optimizer: whose state there is already.
        params: of the optimizer, in one group.

    Raises:
        WrongStepError: if the error is too large, or not a number.
    """
    (group,) = optimizer.param_groups
    before = []
    for param in params:
        assert param.grad is not None
        param.grad.copy_(_gradient(param))
        param.detach().mul_(0.02 / param.detach().square().mean().sqrt())
        state = {key: _copied(value) for key, value in optimizer.state[param].items()}
        before.append((param.detach().double(), state))  # a copy: no weights are in float64
    with _poisoned():
        step()
    factors = reference.Iterated(newton_schulz=contender.newton_schulz)
    error = 0.0
    for param, (X, state) in zip(params, before, strict=True):
        assert param.grad is not None
        expected = reference.step(contender.rule, X, param.grad.double(), state, group, factors) - X
        found = param.detach().double() - X
        mine = _not_a_number_is_worst((found - expected).norm() / expected.norm())
        if mine > (bound := allowed(contender, param)):
            raise WrongStepError(
                f"{contender.name}: relative error {mine:.2e} of {tuple(X.shape)} against float64, allowed {bound:.0e}"
            )
        error = max(error, mine)
    return error


def allowed(contender: Contender, like: Tensor) -> float:
    """Return the largest relative error that rounding explains, for a weight like this one."""
    if contender.rule == "dion" and contender.fraction == 1:
        factors = 1 if contender.options.get("right_factor") == "normalize" else 2  # that are made orthonormal
        return math.sqrt(factors * LEFT_OUT / min(like.shape))
    if contender.rule in ("dion", "adamw"):
        return BOUNDS[contender.product_dtype or like.dtype]
    computed_in = torch.bfloat16 if contender.newton_schulz else polar_dtype(like.dtype, like.device, like.shape)
    return max(POLAR_BOUNDS[computed_in], BOUNDS[like.dtype])


def check_moved(params: Sequence[Tensor], before: Sequence[Tensor], name: str) -> None:
    """Raise a WrongStepError unless all weights are finite and each has changed since; for large ones, after timing.

    Args:
        params: the weights.
        before: some numbers of each, as `sample` returns them.
        name: of what was to move them.
    """
    for param, old in zip(params, before, strict=True):
        new = sample(param)
        if not bool(new.isfinite().all()) or bool((new == old).all()):
            raise WrongStepError(f"{name}: weights of {tuple(param.shape)} did not change, or are no longer finite")


def sample(param: Tensor) -> Tensor:
    """Return a copy of about a thousand numbers from everywhere in a tensor."""
    flat = param.detach().flatten()
    return flat[:: max(1, flat.numel() // 1000)].clone()


def _within(shape: Shape, numbers: int) -> Shape:
    """Return a matrix of about the same aspect with at most so many numbers, and no side below 8."""
    m, n = shape
    shrink = max(1.0, math.sqrt(m * n / numbers))
    return (m, n) if shrink == 1 else (max(8, int(m / shrink)), max(8, int(n / shrink)))


def _gradient(like: Tensor) -> Tensor:
    """Return a random gradient whose rows and columns differ in size, so that the largest of them are distinct."""
    m, n = like.shape
    rows, columns = (0.5 + torch.rand(k, device=like.device) for k in (m, n))
    return torch.randn(m, n, device=like.device) * rows[:, None] * columns


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _not_a_number_is_worst(error: Tensor) -> float:
    return float(error.nan_to_num(nan=math.inf))


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fill what `torch.empty` and its kin return with NaNs."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operations that have no deterministic form may go on
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
