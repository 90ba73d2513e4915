"""AdamW (arXiv 1711.05101): PyTorch's own, so that its results are the same to the bit."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from orthon.algorithms.rule import COMMON_OPTIONS, Rule
from orthon.batch import Batch
from orthon.options import Group, betas, flag, flag_or_none, number
from orthon.sharding import Layout, Step, local


def adamw(batch: Batch, group: Group) -> Step[None]:
    """Make one step of torch.optim.AdamW on parameters of any shape."""
    yield from ()
    # Only the fused form can leave everything as it is without asking the device first.
    fused = True if batch.gate is not None else group["fused"]
    if fused:
        for state, weight in zip(batch.state, batch.weights, strict=True):
            state["step"] = state["step"].to(weight.device)
    beta1, beta2 = group["betas"]
    average, square, *largest = ([local(state[key]) for state in batch.state] for key in _averages(group))
    torch_adamw(
        batch.weights,
        batch.grads,
        average,
        square,
        largest[0] if largest else [],
        [state["step"] for state in batch.state],
        foreach=False if fused else group["foreach"],
        fused=fused,
        found_inf=None if batch.gate is None else 1 - batch.gate,
        amsgrad=group["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _new_state(name: str, param: Tensor, group: Group, layout: Layout) -> dict[str, Tensor]:  # noqa: ARG001
    step_device = param.device if group["fused"] else "cpu"
    return {
        "step": torch.zeros((), dtype=torch.float32, device=step_device),
        **{key: layout.zeros_like(param) for key in _averages(group)},
    }


def _averages(group: Group) -> list[str]:
    return ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * group["amsgrad"]


RULE = Rule(
    name="adamw",
    options={
        **COMMON_OPTIONS,
        "betas": betas((0.9, 0.95)),
        "eps": number(1e-8, ">= 0", lambda v: 0 <= v < float("inf")),
        "amsgrad": flag(False),
        "foreach": flag_or_none(),
        "fused": flag_or_none(),
    },
    new_state=_new_state,
    update=adamw,
)
