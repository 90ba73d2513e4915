"""NorMuon as an optimizer; the update itself is in `orthon.algorithms.normuon`."""

from typing import Unpack

from torch import Tensor

from orthon.optimizers.common import DEFAULT_LR, NamedOptimizer
from orthon.optimizers.mixed import Params
from orthon.optimizers.muon import MuonOptions
from orthon.optimizers.signature import flat_signature


class NorMuonOptions(MuonOptions, total=False):
    """The options of `NorMuon`, which explains them."""

    beta2: float


class NorMuon(NamedOptimizer):
    """NorMuon: Muon, with the rows of its update brought to one size over time (arXiv 2510.05491).

    With O = polar(U) as in `Muon`, and second moments v (m × 1) of the rows::

        v ← beta2·v + (1 − beta2)·mean_j O²
        Ô ← O / (√v + eps), rescaled to the Frobenius norm of O
        X ← (1 − lr·weight_decay)·X − lr·scale·Ô

    It takes the options that all of Orthon's optimizers share, too, such as weight_decay, nonfinite and replicas:
    `help(orthon.optimizers.CommonOptions)` explains them.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none. A number or a one-element tensor.
        momentum: as in `Muon`.
        nesterov: as in `Muon`.
        ema: as in `Muon`.
        polar: as in `Muon`.
        polar_steps: as in `Muon`.
        polar_dtype: as in `Muon`.
        polar_route: as in `Muon`.
        beta2: how much of v stays from step to step, in [0, 1). More averages over more steps, and is slower to follow.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "normuon"

    @flat_signature(algorithm)
    def __init__(self, params: Params, lr: float | Tensor = DEFAULT_LR, **options: Unpack[NorMuonOptions]) -> None:
        super().__init__(params, lr, options)
