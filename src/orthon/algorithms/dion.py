"""Dion: orthonormal updates of low rank from one warm-started power iteration (arXiv 2504.05295)."""

from orthon.algorithms.batch import Batch
from orthon.algorithms.low_rank import LowRank
from orthon.algorithms.low_rank_momentum import LowRankMomentum
from orthon.algorithms.options import number, scheduled
from orthon.algorithms.rule import Rule
from orthon.sharding import Step


def dion(batch: Batch) -> Step[None]:
    """Make one step of Dion on matrices X (b, m, n) with momentum M (b, m, n) and right factor Q (b, n, r).

    M ← M + G
    P ← orthonormalize(M Q)                   one warm-started power iteration
    R ← Mᵀ P
    Q ← R / column_norms(R)
    M ← M − (1 − momentum)·P Rᵀ                error feedback: what the update left out stays in M
    X ← (1 − lr·weight_decay)·X − lr·scale·P Qᵀ

    A direction that M does not have, up to rounding, gives no update, and its column of Q stays.
    """
    M = LowRankMomentum(batch)
    yield from M.add_gradients()
    for _ in range(batch.options["power_iterations"]):
        P = yield from M.left()
        Q = yield from M.right(P)
    yield from M.subtract(P, Q, by=1 - batch.options["momentum"])
    yield from M.descend(P, Q)


RULE = Rule(
    name="dion",
    update=dion,
    entries=LowRank().entries,
    work=LowRank(),
    options={"momentum": scheduled(number(0.95, "in [0, 1)", lambda v: 0 <= v < 1))},
)
