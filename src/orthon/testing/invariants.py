"""What holds of every rule: of steps that are left out and of loaded states bit by bit, and of `maximize`."""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from orthon.optimizers.mixed import MixedOptimizer
from orthon.sharding.matrix_view import MatrixView
from orthon.testing.problems import LR, takes_matrices

# Two of one shape are a batch. The experts are read as several matrices where the rule takes matrices.
_SHAPES: dict[str, tuple[int, ...]] = {"a": (6, 9), "b": (9, 6), "c": (6, 9), "experts": (3, 4, 5)}
_OTHER_SHAPES: dict[str, tuple[int, ...]] = {"vector": (7,)}

Training = tuple[dict[str, nn.Parameter], MixedOptimizer]


@contextmanager
def accelerated() -> Iterator[None]:
    """Let every tensor count as one on an accelerator, which the host does not look into."""
    with mock.patch("orthon.linalg.device._TYPES", ()):
        yield


def check_skipped(rule: str, options: Mapping[str, Any], label: str, *, on_device: bool) -> None:
    """Raise an AssertionError if a step that nonfinite="skip" leaves out changes a bit of weights or state.

    Args:
        rule: the name of a registered rule.
        options: of the rule.
        label: what they are called in messages.
        on_device: whether steps take the way that they take on an accelerator.
    """
    case = f"skipped steps, {'as on an accelerator' if on_device else 'on the CPU'}, {label}, float32"
    with accelerated() if on_device else nullcontext():
        disturbed, undisturbed = _begin(rule, options), _begin(rule, options)
        for step, bad in enumerate((math.nan, math.inf, None, -math.inf)):
            if bad is not None:
                before = _snapshot(disturbed)
                _step(disturbed, 100 + step, bad)
                after = _snapshot(disturbed)
                # Even the first step may make a state.
                _assert_equal({key: after[key] for key in before}, before, f"{case}: step {step}, left out, changes")
            _step(disturbed, step)
            _step(undisturbed, step)
        _assert_equal(_snapshot(disturbed), _snapshot(undisturbed), f"{case}: the steps after one left out change")
        assert disturbed[1].skipped_steps == 3, f"{case}: {disturbed[1].skipped_steps} steps are left out, not 3"


def check_saved(rule: str, options: Mapping[str, Any], label: str) -> None:
    """Raise an AssertionError if training goes on otherwise after its state has been saved and loaded."""
    case = f"saved state, {label}, float32"
    first = _begin(rule, options)
    for step in range(3):
        _step(first, step)
    file = io.BytesIO()
    torch.save(first[1].state_dict(), file)
    file.seek(0)
    second = _begin(rule, options)
    for name, param in second[0].items():
        param.data.copy_(first[0][name].data)
    second[1].load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        _step(first, step)
        _step(second, step)
    _assert_equal(_snapshot(second), _snapshot(first), f"{case}: after loading, steps change")


def check_maximize(rule: str, options: Mapping[str, Any], label: str) -> None:
    """Raise an AssertionError if `maximize` does not change the sign of the gradients, and nothing else."""
    descending, ascending = (_begin(rule, {**options, "maximize": maximize}) for maximize in (False, True))
    for step in range(3):
        _step(descending, step)
        _step(ascending, step, sign=-1.0)
    found = _snapshot(ascending)
    for what, expected in _snapshot(descending).items():
        scale = max(1e-30, expected.abs().max().item())
        error = (found[what] - expected).abs().max().item() / scale
        # Sums of the same numbers, perhaps in another order: rounding, which small singular values amplify.
        assert error <= 1e-3, (
            f"maximize, {label}, float32: negated gradients change {what} by {error:.1e}, allowed 1e-3"
        )


def _begin(rule: str, options: Mapping[str, Any]) -> Training:
    generator = torch.Generator().manual_seed(0)
    shapes = _SHAPES if takes_matrices(rule) else {**_SHAPES, **_OTHER_SHAPES}
    params = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    experts = {"view": MatrixView(transposed=True)} if takes_matrices(rule) else {}
    groups: list[dict[str, Any]] = [
        {"params": [(name, param) for name, param in params.items() if name != "experts"]},
        {"params": [("experts", params["experts"])], **experts},
    ]
    return params, MixedOptimizer(groups, algorithm=rule, options={"lr": LR, **options}, nonfinite="skip")


def _step(training: Training, seed: int, bad: float | None = None, *, sign: float = 1.0) -> None:
    params, optimizer = training
    generator = torch.Generator().manual_seed(seed)
    for param in params.values():
        param.grad = sign * torch.randn(param.shape, generator=generator)
    if bad is not None:
        grad = params["b"].grad
        assert grad is not None
        grad[2, 1] = bad
    optimizer.step()


def _snapshot(training: Training) -> dict[str, Tensor]:
    params, optimizer = training
    result = {f"the weight of {name!r}": param.detach().clone() for name, param in params.items()}
    for name, param in params.items():
        for key, value in optimizer.state.get(param, {}).items():
            result[f"{key} of {name!r}"] = value.clone()
    return result


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], case: str) -> None:
    assert found.keys() == expected.keys(), f"{case} which state there is: {sorted(found)}, not {sorted(expected)}"
    for what, value in expected.items():
        error = (found[what].double() - value.double()).abs().max().item()
        assert torch.equal(found[what], value), f"{case} {what} by {error:.1e}, allowed 0"
