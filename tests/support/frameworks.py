"""The lines of Accelerate, Lightning and Lightning Fabric that matter to an optimizer, written anew."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class AcceleratedOptimizer(torch.optim.Optimizer):
    """Accelerate's: it counts a step as skipped if `step` has not been called."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.step_was_skipped = False
        self._called = False
        self._original, self._patched = optimizer.step, self._counting(optimizer.step)
        optimizer.load_state_dict(optimizer.state_dict())  # moved to the device

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def patched_step(*args: Any, **kwargs: Any) -> Any:
            self._called = True
            return method(*args, **kwargs)

        return patched_step

    def step(self, closure: Callable[[], float] | None = None) -> None:
        if self.scaler is None:
            self.optimizer.step(closure)
            return
        self.optimizer.step = self._patched
        self.scaler.step(self.optimizer, closure)
        self.scaler.update()
        self.step_was_skipped = not self._called
        self.optimizer.step = self._original
        self._called = False


class LightningOptimizer:
    """Lightning's and Fabric's: it takes on the class of the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Lightning" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        return self._optimizer.step(closure)

    def __getattr__(self, item: str) -> Any:
        return getattr(self._optimizer, item)


def handles_unscaling(optimizer: Any) -> bool:
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def lightning_step(
    optimizer: torch.optim.Optimizer, closure: Callable[[], Any], scaler: torch.amp.GradScaler | None, clip: float
) -> None:
    """Make a step in mixed precision with clipping, as Lightning's precision plugin does."""

    def clip_gradients() -> None:
        if clip > 0 and handles_unscaling(optimizer):
            raise RuntimeError("The current optimizer does not allow for gradient clipping")
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)

    def closure_and_clipping() -> Any:
        result = closure()
        clip_gradients()
        return result

    if scaler is None:
        optimizer.step(closure_and_clipping)
        return
    closure()
    if not handles_unscaling(optimizer):
        scaler.unscale_(optimizer)
    clip_gradients()
    scaler.step(optimizer)
    scaler.update()
