"""Lion: the sign of a momentum (arXiv 2302.06675, algorithm 2)."""

import torch
from torch import Tensor

from orthon.algorithms.rule import COMMON_OPTIONS, Rule
from orthon.batch import Batch
from orthon.options import Group, betas
from orthon.sharding import Layout, Step, local


def lion(batch: Batch, group: Group) -> Step[None]:
    """Make one step of Lion on parameters X of any shape with momentum M of the same shape.

    X ← (1 − lr·weight_decay)·X − lr·sign(β₁·M + (1 − β₁)·G)
    M ← β₂·M + (1 − β₂)·G
    """
    yield from ()
    beta1, beta2 = group["betas"]
    lr, gain = batch.gated_lr(group["lr"]), batch.gated(1 - beta2)
    momentum = [local(state["exp_avg"]) for state in batch.state]

    news = torch._foreach_sub(torch._foreach_neg(batch.grads) if group["maximize"] else batch.grads, momentum)
    update = torch._foreach_add(momentum, news, alpha=1 - beta1)
    torch._foreach_sign_(update)
    torch._foreach_mul_(update, lr)
    torch._foreach_mul_(batch.weights, 1 - lr * group["weight_decay"])
    torch._foreach_sub_(batch.weights, update)
    torch._foreach_mul_(news, gain)
    torch._foreach_add_(momentum, news)


def _new_state(name: str, param: Tensor, group: Group, layout: Layout) -> dict[str, Tensor]:  # noqa: ARG001
    return {"exp_avg": layout.zeros_like(param)}


RULE = Rule(
    name="lion",
    options={**COMMON_OPTIONS, "betas": betas((0.9, 0.95))},
    new_state=_new_state,
    update=lion,
)
