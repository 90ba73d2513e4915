"""What belongs to Muon and NorMuon alone: Muon is torch's, and NorMuon's rows have one size."""

from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon.testing.formulas import start
from orthon.testing.gradients import sequence
from tests.rules_table import SHAPES


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both iterate in float32, torch's where it asks for bfloat16, ours also on CPUs that are fast at that."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.float().clone())  # which is then divided in place
    monkeypatch.setattr("orthon.algorithms.whole_matrix.polar_dtype", lambda *_: torch.float32)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param({}, {}, id="defaults"),
        pytest.param({"nesterov": False}, {}, id="not nesterov"),
        pytest.param({"momentum": 0.5}, {}, id="momentum 0.5"),
        pytest.param({"momentum": 0.0}, {}, id="no momentum"),
        pytest.param({"weight_decay": 0.0}, {}, id="no decay"),
        pytest.param({"weight_decay": 3.0, "lr": 0.05}, {}, id="much decay"),
        pytest.param({"adjust_lr_fn": "original"}, {}, id="original"),
        pytest.param({"adjust_lr_fn": "match_rms_adamw"}, {"adjust_lr_fn": "match_rms_adamw"}, id="match_rms_adamw"),
        pytest.param({"ns_steps": 1}, {"polar_steps": 1}, id="1 step"),
        pytest.param({"ns_steps": 3}, {"polar_steps": 3}, id="3 steps"),
        pytest.param({"ns_steps": 8}, {"polar_steps": 8}, id="8 steps"),
    ],
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_muon_is_torchs(shape: tuple[int, int], theirs: dict[str, Any], ours: dict[str, Any], ema: bool) -> None:
    common = {"lr": 0.02, "weight_decay": 0.1}
    a, b = nn.Parameter(start(shape, torch.float32)), nn.Parameter(start(shape, torch.float32))
    shared = {k: v for k, v in theirs.items() if k not in ("adjust_lr_fn", "ns_steps")}
    optimizers = (
        torch.optim.Muon([a], **{**common, **theirs}),
        orthon.Muon(
            [b], **{**common, "adjust_lr_fn": "original", "polar": "newton_schulz", "ema": ema, **shared, **ours}
        ),
    )
    for step, gradient in enumerate(sequence("full_rank", *shape, 10)):
        a.grad, b.grad = gradient.float(), gradient.float()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5, msg=lambda m, s=step: f"step {s}: {m}")
    if ema:
        buffer = optimizers[0].state[a]["momentum_buffer"]
        torch.testing.assert_close(optimizers[1].state[b]["momentum"], buffer, rtol=0, atol=1e-6)


def test_rows_have_one_size_in_time() -> None:
    """NorMuon's rows all reach the same root mean square, where Muon's stay as uneven as the gradient makes them."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.linspace(1, 0.05, 16, dtype=torch.float64)[:, None]
    sizes = {}
    for rule in ("Muon", "NorMuon"):
        param = nn.Parameter(torch.zeros(16, 8, dtype=torch.float64))
        optimizer = getattr(orthon, rule)(
            [param], lr=1.0, weight_decay=0.0, adjust_lr_fn="none", momentum=0.0, polar="svd"
        )
        for _ in range(200):
            before = param.detach().clone()
            param.grad = wide * torch.randn(16, 8, generator=generator, dtype=torch.float64)
            optimizer.step()
        update = param.detach() - before
        assert update.norm() == pytest.approx(8**0.5)  # of eight orthonormal directions
        sizes[rule] = optimizer.state[param].get("row_moment", update.square().mean(1))
        if rule == "NorMuon":
            rows = update.square().mean(1).sqrt()
            assert rows.max() / rows.min() < 4
        else:
            rows = update.square().mean(1).sqrt()
            assert rows.max() / rows.min() > 4
