"""torch.amp.GradScaler on models that PyTorch's own wrappers have distributed, against one process."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from orthon import Dion
from orthon.testing import Pool
from tests.support.wrapped_models import BATCH, WORLD, model, wrap

STEPS = 5
OVERFLOW = 2  # the step in which one rank's loss is infinite


def train(kind: str) -> float:
    """Train with a scaler of this rank's own, and return its last scale."""
    alone = model()
    net, place, parts, options = wrap(kind, copy.deepcopy(alone))
    optimizer = Dion.for_model(net, lr=0.05, rank_fraction=0.5, **options)
    expected = Dion.for_model(alone, lr=0.05, rank_fraction=0.5, nonfinite="skip")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x, y = (torch.randn(BATCH, n, generator=generator, dtype=torch.float64) for n in (8, 4))
        if step != OVERFLOW:
            nn.functional.mse_loss(alone(x), y).backward()
            expected.step()
        loss = nn.functional.mse_loss(net(x.chunk(parts)[place]), y.chunk(parts)[place])
        infinite = step == OVERFLOW and place == parts - 1
        scaler.scale(loss * float("inf") if infinite else loss).backward()
        if step >= OVERFLOW:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        expected.zero_grad()
        optimizer.zero_grad()
    assert optimizer.skipped_steps == 1
    right = dict(alone.named_parameters())
    for name, param in net.named_parameters():
        whole = param.full_tensor() if isinstance(param, DTensor) else param
        other = right[name.removeprefix("module.")]
        torch.testing.assert_close(whole, other, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    return scaler.get_scale()


# Who halves the scale. In compressed synchronization others do not see the infinity: they only leave the step out.
# Tensor parallelism alone is missing: torch's scaler refuses plain parameters beside DTensors.
HALVED = {
    "ddp": range(WORLD),
    "ddp compressed": [3],
    "fsdp": range(WORLD),
    "hsdp": range(WORLD),
    "hsdp compressed": [2, 3],
    "fsdp x tp": range(WORLD),
}


@pytest.mark.parametrize("kind", HALVED)
def test_an_overflow_on_one_rank(ranks: Pool, kind: str) -> None:
    scales = ranks.run(WORLD, train, kind)
    assert scales == [2.0 ** (8 - (rank in HALVED[kind])) for rank in range(WORLD)]
