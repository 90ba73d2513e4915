"""Dion3, also called NorDion2, as an optimizer; the update itself is in `orthon.algorithms.dion3`."""

from typing import Unpack

from torch import Tensor

from orthon.optimizers.common import DEFAULT_LR, NamedOptimizer
from orthon.optimizers.dion2 import Dion2Options
from orthon.optimizers.mixed import Params
from orthon.optimizers.signature import flat_signature


class Dion3Options(Dion2Options, total=False):
    """The options of `Dion3`, which explains them."""

    beta2: float


class Dion3(NamedOptimizer):
    """Dion3: Dion2 with the rows of its update brought to one size over time, as in NorMuon (arXiv 2608.11612).

    It is also called NorDion2. As its authors have it, it selects rows of every matrix, whole neurons, whose second
    moments it divides by. Rows of X that are not updated keep theirs.

    It takes the options that all of Orthon's optimizers share, too, such as weight_decay, nonfinite and replicas:
    `help(orthon.optimizers.CommonOptions)` explains them.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none. A number or a one-element tensor.
        fraction: as in `Dion2`.
        momentum: as in `Dion2`.
        selection: as in `Dion2`.
        selection_side: "rows" selects rows of every matrix. "short" selects columns of tall matrices, as in `Dion2`.
            That is less work for them, and another rule than the authors': every row has a second moment then, of its
            entries in these columns.
        lr_scale_by_fraction: as in `Dion2`.
        polar: as in `Muon`.
        polar_steps: as in `Muon`.
        polar_dtype: as in `Muon`.
        beta2: as in `NorMuon`.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "dion3"

    @flat_signature(algorithm)
    def __init__(self, params: Params, lr: float | Tensor = DEFAULT_LR, **options: Unpack[Dion3Options]) -> None:
        super().__init__(params, lr, options)


NorDion2 = Dion3
