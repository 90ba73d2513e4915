"""Dion2 as an optimizer; the update itself is in `orthon.algorithms.dion2`."""

from typing import Unpack

import torch
from torch import Tensor

from orthon.optimizers.common import DEFAULT_LR, CommonOptions, NamedOptimizer
from orthon.optimizers.mixed import Params
from orthon.optimizers.signature import flat_signature


class Dion2Options(CommonOptions, total=False):
    """The options of `Dion2`, which explains them."""

    fraction: float
    momentum: float
    selection: str
    selection_side: str
    lr_scale_by_fraction: bool
    polar: str
    polar_steps: int
    polar_dtype: torch.dtype | None


class Dion2(NamedOptimizer):
    """Dion2: the polar factor of the rows of the momentum that have grown most (arXiv 2512.16928).

    For a weight X (m × n) with gradient G and momentum M (m × n). Where m > n, columns take the place of rows::

        M ← M + G
        S ← the ⌈fraction·m⌉ rows of M with the largest ℓ1 norms
        X ← (1 − lr·weight_decay)·X
        X[S] ← X[S] − lr·scale·polar(M[S])
        M[S] ← momentum·M[S]

    It takes the options that all of Orthon's optimizers share, too, such as weight_decay, nonfinite and replicas:
    `help(orthon.optimizers.CommonOptions)` explains them.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none. A number or a one-element tensor.
        fraction: of the rows that a step updates, in (0, 1]. Communication is proportional to it, and the work to its
            square. In our runs of a small LLaMA 1/4 ended 0.3 to 0.5 behind Muon (docs/measured/batch.md); its authors
            report 0.012 at 1B.
        momentum: how much of the selected rows of M stays, in [0, 1). Rows that are not selected keep all:
            that is error feedback.
        selection: how the rows are chosen. "global" compares the norms of all rows of the matrix, so that the rows are
            the same on every layout. It costs one wait for each batch on an accelerator if processes divide the rows:
            they must know how many rows are where. "local" takes the same fraction of the rows of each process, so that
            the update depends on the layout. "random" chooses by seed, name and step. With `sync_gradients`, only these
            rows are averaged.
        selection_side: "short" selects from the rows, or from the columns where these are fewer (m > n): the work falls
            with the square of the fraction. "rows" always selects rows.
        lr_scale_by_fraction: whether to multiply lr by 1/√fraction (arXiv 2608.11612), for a learning rate that was
            tuned for Muon.
        polar: as in `Muon`.
        polar_steps: as in `Muon`.
        polar_dtype: as in `Muon`.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "dion2"

    @flat_signature(algorithm)
    def __init__(self, params: Params, lr: float | Tensor = DEFAULT_LR, **options: Unpack[Dion2Options]) -> None:
        super().__init__(params, lr, options)
