"""Lion: the sign of a momentum (arXiv 2302.06675, algorithm 2)."""

import torch

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group, betas
from orthon.algorithms.rule import COMMON_OPTIONS, Rule
from orthon.algorithms.state import Entries, Entry
from orthon.sharding import Step, local


def lion(batch: Batch, group: Group) -> Step[None]:
    """Make one step of Lion on parameters X of any shape with momentum M of the same shape.

    X ← (1 − lr·weight_decay)·X − lr·sign(β₁·M + (1 − β₁)·G)
    M ← β₂·M + (1 − β₂)·G
    """
    yield from ()
    beta1, beta2 = group["betas"]
    (lr, rate), gain = batch.rates(group), batch.gated(1 - beta2)
    momentum = [local(state["exp_avg"]) for state in batch.state]

    news = torch._foreach_sub(torch._foreach_neg(batch.grads) if group["maximize"] else batch.grads, momentum)
    update = torch._foreach_add(momentum, news, alpha=1 - beta1)
    torch._foreach_sign_(update)
    batch.decay(rate, cautious=update if group["cautious_weight_decay"] else None)
    batch.subtract(update, lr)
    torch._foreach_mul_(news, gain)
    torch._foreach_add_(momentum, news)


def _entries(shape: tuple[int, ...], group: Group) -> Entries:  # noqa: ARG001
    return {"exp_avg": Entry()}


RULE = Rule(
    name="lion",
    options={**COMMON_OPTIONS, "betas": betas((0.9, 0.95))},
    entries=_entries,
    update=lion,
)
