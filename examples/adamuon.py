"""A rule of your own: AdaMuon (arXiv 2507.11005). Import this file, and param groups may choose it by its name.

Run: python examples/adamuon.py
"""

from math import sqrt

import torch
from torch import nn

import orthon
import orthon.algorithms as oa


def adamuon(batch: oa.Batch) -> oa.Step[None]:
    """Make one step on matrices X (b, m, n) with momentum M and second moment V (b, m, n).

    M ← momentum·M + G
    O ← polar(sign(M))                     with nesterov: sign(momentum·M + G)
    V ← beta2·V + (1 − beta2)·O²
    N ← O / (√V + eps)
    X ← (1 − lr·weight_decay)·X − lr·scale·N·√min(m, n) / ‖N‖
    """
    M = oa.updated_momentum(batch)
    O = yield from oa.polar_factor(M.sign_(), batch)
    V = batch.kept("second_moment")
    V.lerp_(O.square(), 1 - batch.options["beta2"])
    N = O / (V.value.sqrt() + batch.options["eps"])
    norms = yield from batch.norms(N)  # (b, 1, 1), of whole matrices, on however many ranks they lie
    batch.descend(N * (sqrt(min(batch.shape)) / norms.clamp(min=1e-30)))


options = {
    **oa.MOMENTUM_OPTIONS,
    "nesterov": oa.flag(False),
    "beta2": oa.number(0.95, "in [0, 1)", lambda v: 0 <= v < 1),
    "eps": oa.number(1e-8, "> 0", lambda v: v > 0),
    "adjust_lr_fn": oa.choice("match_rms_adamw", "spectral_unclamped", "original", "none"),  # the first is the default
}
state = {"momentum": oa.Entry(), "second_moment": oa.Entry()}

oa.register_rule(oa.Rule("adamuon", adamuon, state, work=oa.WholeMatrix(), options=options))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32))
    optimizer = orthon.MixedOptimizer(model.parameters(), algorithm="adamuon", options={"lr": 0.02}, others="adamw")
    for step in range(101):
        x = torch.randn(128, 32)
        loss = (model(x) - x.roll(1, dims=1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
