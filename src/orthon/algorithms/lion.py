"""Lion: the sign of a momentum (arXiv 2302.06675, algorithm 2)."""

import torch

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import betas, scheduled
from orthon.algorithms.rule import Rule
from orthon.algorithms.state import Entry
from orthon.algorithms.work import Elementwise


def lion(batch: Batch) -> None:
    """Make one step of Lion on parameters X of any shape with momentum M of the same shape.

    X ← (1 − lr·weight_decay)·X − lr·sign(β₁·M + (1 − β₁)·G)
    M ← β₂·M + (1 − β₂)·G
    """
    beta1, beta2 = batch.options["betas"]
    M = batch.kept("exp_avg")
    news = torch._foreach_sub(batch.G, M.parts)  # G − M
    update = torch._foreach_add(M.parts, news, alpha=1 - beta1)
    torch._foreach_sign_(update)
    batch.descend(update)
    M.add_(news, 1 - beta2, overwrite=True)


RULE = Rule("lion", lion, {"exp_avg": Entry()}, work=Elementwise(), options={"betas": scheduled(betas((0.9, 0.95)))})
