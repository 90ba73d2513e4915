"""torch's ZeroRedundancyOptimizer, which calls the class with the parameters of each rank, and copies its groups."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon.testing import Pool
from tests.support.all_rules import step

EXACT: dict[str, Any] = {"lr": 0.1, "others": "adamw", "polar": "svd"}


def train(layers: int) -> list[float]:
    """Train on this rank beside one optimizer of everything. Return the learning rates of the rank's own optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, at this import
        from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)), nn.LayerNorm(4))
    other = copy.deepcopy(net)
    zero = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=orthon.Muon, **EXACT)
    alone = orthon.Muon(other.parameters(), **EXACT)
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in (zero, alone)]
    rates = []
    for t in range(3):
        for each, optimizer in ((net, zero), (other, alone)):
            step(dict(each.named_parameters()), optimizer, t)
        rates.append(zero.optim.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    zero.consolidate_state_dict(to=0)
    if torch.distributed.get_rank() == 0:
        zero.load_state_dict(zero.state_dict())
    return rates


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_zero_redundancy(ranks: Pool, layers: int) -> None:
    """Without layers there are fewer parameters than ranks."""
    assert ranks.run(4, train, layers) == [[0.1, 0.05, 0.025]] * 4
