"""A rule in one process against a reference: its formulas, in float64, one parameter at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orthon.optimizers.mixed import MixedOptimizer
from orthon.testing.gradients import sequence
from orthon.testing.references import Reference

STEPS = 5
MATRICES: dict[str, tuple[int, ...]] = {
    "tall": (24, 10),
    "wide": (10, 24),
    "square": (16, 16),
    "one row": (1, 12),
    "one column": (12, 1),
}
# Those of rules that take any shape, besides.
OTHERS: dict[str, tuple[int, ...]] = {"vector": (13,), "three dims": (3, 4, 5)}

TOLERANCE = 1e-10  # of the largest size that a weight or a state has in all steps, at least
STATE_TOLERANCE = 1e-6  # where some of the state is in float32 by the rule's own choice


@dataclass(frozen=True)
class FormulaCase:
    """What is computed in both ways.

    Attributes:
        rule: the name of a registered rule.
        options: of the rule.
        label: what they are called in messages.
        shape: a key of MATRICES or OTHERS.
        gradients: a key of `gradients.KINDS`.
    """

    rule: str
    options: Mapping[str, Any] = field(hash=False)
    label: str
    shape: str
    gradients: str

    def __str__(self) -> str:
        return f"against the reference, {self.shape}, gradients {self.gradients}, {self.label}, float64"


class Both(NamedTuple):
    """Weight and state at the end, of the reference and of the rule."""

    expected: Tensor
    expected_state: dict[str, Tensor]
    found: Tensor
    state: dict[str, Tensor]
    sizes: dict[str, float]  # the largest that the reference's weight ("") and state had in any step


def start(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a weight before the first step."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def initial_state(rule: str, X: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a rule keeps of a parameter before the first step: a step that is left out makes it."""
    param = nn.Parameter(X.clone())
    optimizer = MixedOptimizer([("w", param)], algorithm=rule, options=options, nonfinite="skip")
    param.grad = torch.full_like(param, float("nan"))
    optimizer.step()
    return dict(optimizer.state[param])


def run_both(
    rule: str,
    reference: Reference,
    gradients: list[Tensor],
    options: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float64,
    noise: float = 0.0,
    nonfinite: str = "raise",
) -> Both:
    """Run the reference in float64, and the rule in `dtype`, on the same weight and gradients.

    Args:
        rule: the name of a registered rule.
        reference: the rule's formulas.
        gradients: of each step, in float64.
        options: of the rule.
        dtype: of weight and gradients. The reference has what they are after rounding to it.
        noise: relative size of the noise in the gradients of the reference; zeros stay zeros.
        nonfinite: of the optimizer.
    """
    generator = torch.Generator().manual_seed(2)
    param = nn.Parameter(start(tuple(gradients[0].shape), dtype))
    expected = param.detach().double().clone()
    optimizer = MixedOptimizer([("w", param)], algorithm=rule, options=options, nonfinite=nonfinite)
    group = dict(optimizer.param_groups[0])
    before = initial_state(rule, param.detach(), options)
    state = {key: x.double().clone() for key, x in before.items()}
    sizes = dict.fromkeys(["", *state], 0.0)
    for gradient in gradients:
        param.grad = gradient.to(dtype)
        drawn = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        exact = param.grad.double()
        exact += noise * exact.abs().max() * drawn * (exact != 0)
        expected = reference(expected, exact, state, group)
        optimizer.step()
        for key, x in {"": expected, **state}.items():
            sizes[key] = max(sizes.get(key, 0.0), x.norm().item())
    return Both(expected, state, param.detach(), dict(optimizer.state[param]), sizes)


def check_formulas(case: FormulaCase, reference: Reference) -> float:
    """Return the largest relative error of weight and state after some steps.

    What rounding explains is measured: how the reference itself changes where its gradients change by rounding.

    Raises:
        AssertionError: if an error is larger than that; the message names the case.
    """
    shape = {**MATRICES, **OTHERS}[case.shape]
    m, n = shape[0], torch.Size(shape[1:]).numel()
    gradients = [gradient.view(shape) for gradient in sequence(case.gradients, m, n, STEPS)]
    both = run_both(case.rule, reference, gradients, case.options)
    noisy = run_both(case.rule, reference, gradients, case.options, noise=2 * torch.finfo(torch.float64).eps)
    missing = both.state.keys() ^ both.expected_state.keys()
    assert not missing, f"{case}: {', '.join(sorted(missing))} should be in the state of both rule and reference"
    coarse = any(x.dtype == torch.float32 and x.ndim for x in both.state.values())
    least = STATE_TOLERANCE if coarse else TOLERANCE
    largest = 0.0
    for key, size in both.sizes.items():
        right = both.expected_state[key] if key else both.expected
        other = noisy.expected_state[key] if key else noisy.expected
        found = both.state[key] if key else both.found
        scale = size or 1.0
        allowed = max(least, 5 * (other - right).norm().item() / scale)
        error = (found.double() - right).norm().item() / scale
        what = repr(key) if key else "the weight"
        assert error <= allowed, f"{case}: {what} has relative error {error:.1e}, allowed {allowed:.0e}"
        largest = max(largest, error)
    return largest
