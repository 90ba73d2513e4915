"""An optimizer in which every rule has a group, and all schedulers of torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

import orthon
from orthon import Dion, MixedOptimizer
from orthon.algorithms import RULES

CLASSES = [orthon.Dion, orthon.Muon, orthon.NorMuon, orthon.Dion2, orthon.Dion3]
STEPS, SAVED = 9, 4

Scheduler = Callable[[torch.optim.Optimizer], Any]


class Plateau(lr_scheduler.ReduceLROnPlateau):
    """One that sees no progress."""

    def step(self, *_: Any) -> None:
        super().step(1.0)


# Every scheduler of torch.
SCHEDULERS: dict[str, Scheduler] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "CyclicLR, no momentum": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "OneCycleLR, no momentum": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 6)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.5, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: Plateau(o, factor=0.5, patience=1),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 4),
}
CYCLES = ["OneCycleLR", "CyclicLR"]


def weights(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(6, 4, generator=generator)) for name in RULES}


class Weights(nn.Module):
    """The weights as a model."""

    def __init__(self) -> None:
        super().__init__()
        for rule, param in weights().items():
            self.register_parameter(rule, param)


def all_rules(params: dict[str, nn.Parameter], lr: Any = 0.05, **options: Any) -> MixedOptimizer:
    """Return an optimizer in which every rule has a group, each with a tensor of its own where lr is one."""
    groups = [
        {
            "params": [(name, param)],
            "algorithm": name,
            "name": name,
            "lr": lr.clone() if isinstance(lr, torch.Tensor) else lr,
        }
        for name, param in params.items()
    ]
    return Dion(groups, lr=lr, **options)


def step(params: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    for index, param in enumerate(params.values()):
        generator = torch.Generator().manual_seed(100 * seed + index)
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()


def first_beta(group: dict[str, Any]) -> float:
    """Return what a scheduler cycles as momentum."""
    return group["betas"][0] if "betas" in group else group["momentum"]
