"""Muon as an optimizer; the update itself is in `orthon.algorithms.muon`."""

from typing import Unpack

import torch
from torch import Tensor

from orthon.optimizers.common import DEFAULT_LR, CommonOptions, NamedOptimizer
from orthon.optimizers.mixed import Params
from orthon.optimizers.signature import flat_signature


class MuonOptions(CommonOptions, total=False):
    """The options of `Muon`, which explains them."""

    momentum: float
    nesterov: bool
    ema: bool
    polar: str
    polar_steps: int
    polar_dtype: torch.dtype | None
    polar_route: str


class Muon(NamedOptimizer):
    """Muon: the polar factor of the momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    For a weight X (m × n) with gradient G and momentum M (m × n)::

        M ← momentum·M + G
        U ← momentum·M + G                        M without nesterov
        X ← (1 − lr·weight_decay)·X − lr·scale·polar(U)

    It takes the options that all of Orthon's optimizers share, too, such as weight_decay, nonfinite and replicas:
    `help(orthon.optimizers.CommonOptions)` explains them.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none. A number or a one-element tensor.
        momentum: how much of M stays from step to step, in [0, 1). More averages over more steps, and wants a lower lr.
            Short runs want less: in 300 steps 0.8 ended before 0.9, and that before 0.95 (docs/measured/momentum.md).
        nesterov: whether the update looks one gradient ahead, as Jordan's does. It costs one more pass over M, and no
            state.
        ema: whether M is an exponential average, momentum·M + (1 − momentum)·G, as in `torch.optim.Muon`. This changes
            the scale of M alone, not the update.
        polar: how the polar factor is computed: by the iterations "polar_express" (arXiv 2505.16932) or "newton_schulz"
            (Jordan's quintic polynomial, torch's default), or by "svd", which is exact and slow.
        polar_steps: the number of iterations. More of them bring small singular values closer to 1. They also enlarge
            the rounding noise in directions that M does not have: in float32 to 0.001 after 10, and to 1 after 20.
        polar_dtype: the dtype of this computation: torch.bfloat16, torch.float32 or torch.float64. None is bfloat16 on
            GPUs and on CPUs that multiply it in hardware (AMX, AVX512-BF16), float32 on other CPUs, and float64 for
            float64 weights.
        polar_route: how processes that each hold a part of a matrix work together. "owners" sends each matrix to one of
            them. "shards" leaves the parts where they are and sums Gram matrices. "auto" takes what costs less, and
            `orthon.explain` tells which that is.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "muon"

    @flat_signature(algorithm)
    def __init__(self, params: Params, lr: float | Tensor = DEFAULT_LR, **options: Unpack[MuonOptions]) -> None:
        super().__init__(params, lr, options)
