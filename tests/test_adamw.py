"""AdamW is torch's to the bit."""

from typing import Any

import pytest
import torch
from torch import nn

from orthon import Dion

ADAMW_FLAGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "other constants": {"betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.3, "lr": 0.02},
    "tensor lr": {"lr": torch.tensor(0.02)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("flags", ADAMW_FLAGS)
def test_adamw_is_torchs_to_the_bit(flags: str, dtype: torch.dtype) -> None:
    options = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.01, **ADAMW_FLAGS[flags]}
    starts = [torch.randn(5, 3), torch.randn(7), torch.randn(2, 3, 4)]
    mine = [nn.Parameter(start.to(dtype)) for start in starts]
    theirs = [nn.Parameter(start.to(dtype)) for start in starts]
    optimizers = (
        Dion([{"params": mine, "algorithm": "adamw", **options}]),
        torch.optim.AdamW(theirs, **options),
    )
    for step in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = b.grad = None if step == 2 and a.ndim == 1 else torch.randn_like(a)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)
        state_a, state_b = optimizers[0].state[a], optimizers[1].state[b]
        assert state_a.keys() == state_b.keys()
        for key in state_a:
            assert torch.equal(state_a[key], state_b[key]), key
