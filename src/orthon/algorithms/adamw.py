"""AdamW (arXiv 1711.05101): PyTorch's own, so that its results are the same to the bit."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from orthon.algorithms.batch import Batch, scalar
from orthon.algorithms.options import Group, betas, flag, flag_or_none, number, own, scheduled, structural
from orthon.algorithms.rule import Rule
from orthon.algorithms.state import Counter, Entries, Entry
from orthon.algorithms.weights import agreeing, decay_
from orthon.algorithms.work import Elementwise
from orthon.sharding import local


def adamw(batch: Batch) -> None:
    """Make one step of torch.optim.AdamW on parameters of any shape."""
    options = batch.options
    # Only the fused form can leave everything as it is without asking the device first.
    fused = True if batch.gate is not None else options["fused"]
    if fused:
        for state, weight in zip(batch.state, batch.weights, strict=True):
            state["step"] = state["step"].to(weight.device)
    beta1, beta2 = options["betas"]
    average, square, *largest = ([local(state[key]) for state in batch.state] for key in _averages(options))
    (_, rate), weight_decay = batch.rates(), scalar(options["weight_decay"])
    cautious = options["cautious_weight_decay"]
    # A scaler's gradients of float16 weights arrive in float32, which torch's own does not take for them.
    grads = [grad.to(X.dtype) for X, grad in zip(batch.weights, batch.grads, strict=True)]
    with batch.writing:
        if isinstance(weight_decay, Tensor):  # torch's own takes numbers alone
            weight_decay = 0.0
            if not cautious:
                decay_(batch.weights, rate)
        # A copy: torch 2.11 has no _foreach_clone.
        before = torch._foreach_mul(batch.weights, 1.0) if cautious else ()
        torch_adamw(
            batch.weights,
            grads,
            average,
            square,
            largest[0] if largest else [],
            [state["step"] for state in batch.state],
            foreach=False if fused else options["foreach"],
            fused=fused,
            found_inf=None if batch.gate is None else (1 - batch.gate).float(),  # the only dtype that it takes
            amsgrad=options["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=options["lr"],
            weight_decay=0.0 if cautious else weight_decay,
            eps=options["eps"],
            maximize=options["maximize"],
        )
        if cautious:
            # X is already at X − lr·direction; what decays is X as it was.
            for X, old in zip(batch.weights, before, strict=True):
                X.sub_(agreeing(old, old - X).mul_(rate))


def _entries(shape: tuple[int, ...], options: Group) -> Entries:  # noqa: ARG001
    return {
        "step": Counter(on_device=bool(options["fused"] or options["capturable"])),
        **{key: Entry(of_squares=key.endswith("_sq")) for key in _averages(options)},
    }


def _averages(options: Group) -> list[str]:
    return ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * options["amsgrad"]


RULE = Rule(
    name="adamw",
    update=adamw,
    entries=_entries,
    work=Elementwise(),
    options={
        "betas": scheduled(betas((0.9, 0.95))),
        "eps": number(1e-8, ">= 0", lambda v: 0 <= v < float("inf")),
        "amsgrad": structural(flag(False)),
        "foreach": own(flag_or_none()),
        "fused": own(flag_or_none()),
    },
)
