"""Dion: orthonormal updates of low rank from one warm-started power iteration (arXiv 2504.05295)."""

from collections.abc import Mapping
from typing import Any

from orthon.algorithms.batch import Batch
from orthon.algorithms.low_rank import LowRank
from orthon.algorithms.low_rank_momentum import LowRankMomentum
from orthon.algorithms.rule import Rule
from orthon.sharding import Step


def dion(batch: Batch) -> Step[None]:
    """Make one step of Dion on matrices X (b, m, n) with momentum M (b, m, n) and right factor Q (b, n, r).

    N ← momentum·M + G                         with feedback: M + G
    P ← orthonormalize(N Q)                    one warm-started power iteration
    R ← Nᵀ P
    Q ← orthonormalize(R)                      or another right factor of R
    E ← N − P Rᵀ                               what P leaves out; it is never formed
    X ← (1 − lr·weight_decay)·X − lr·scale·(P Qᵀ + tail(E))
    M ← N − G/(1 + momentum)                   without nesterov: N; with feedback: momentum·P Rᵀ + residual_momentum·E

    In the paper there is no tail, and what the update left out stays in M: error feedback, with residual_momentum = 1.
    A direction that N does not have, up to rounding, gives no update, and its column of Q stays.
    """
    M = LowRankMomentum(batch)
    yield from M.add_gradients()
    for _ in range(batch.options["power_iterations"]):
        P = yield from M.left()
        Q = yield from M.right(P)
    yield from M.descend(P, Q)
    yield from M.fade(P, Q)


# The options that make it the Dion of the paper.
PAPER: Mapping[str, Any] = {"right_factor": "normalize", "tail": 0.0, "residual_momentum": 1.0, "nesterov": False}

RULE = Rule(name="dion", update=dion, entries=LowRank().entries, work=LowRank(), options={})
