"""A rule of your own: AdaMuon (arXiv 2507.11005). Import this file, and param groups may say "algorithm": "adamuon"."""

from math import sqrt

from orthon import Rule, register_rule
from orthon.algorithms import MOMENTUM_OPTIONS, Batch, Entry, Step, WholeMatrix, choice, number, updated_momentum
from orthon.algorithms import polar_factor as polar


def adamuon(batch: Batch) -> Step[None]:
    """Make one step on matrices X (b, m, n) with momentum M and second moment V (b, m, n).

    M ← momentum·M + G
    O ← polar(sign(M))                     with nesterov: sign(momentum·M + G)
    V ← beta2·V + (1 − beta2)·O²
    N ← O / (√V + eps)
    X ← (1 − lr·weight_decay)·X − lr·scale·N·√min(m, n) / ‖N‖
    """
    M = updated_momentum(batch)
    O = yield from polar(M.sign_(), batch)
    V = batch.kept("second_moment")
    V.lerp_(O.square(), 1 - batch.options["beta2"])
    N = O / (V.value.sqrt() + batch.options["eps"])
    norms = yield from batch.norms(N)  # (b, 1, 1), of whole matrices, on however many ranks they lie
    batch.descend(N * (sqrt(min(batch.shape)) / norms.clamp(min=1e-30)))


options = {
    **MOMENTUM_OPTIONS,
    "beta2": number(0.95, "in [0, 1)", lambda v: 0 <= v < 1),
    "eps": number(1e-8, "> 0", lambda v: v > 0),
    "lr_scale": choice("match_rms_adamw", "spectral_unclamped", "original", "none"),  # the first is the default
}
state = {"momentum": Entry(), "second_moment": Entry()}

register_rule(Rule("adamuon", adamuon, state, work=WholeMatrix(), options=options))
