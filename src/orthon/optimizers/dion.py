"""Dion as an optimizer; the update itself is in `orthon.algorithms.dion`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from orthon.algorithms.dion import PAPER
from orthon.optimizers.common import DEFAULT_LR, CommonOptions, NamedOptimizer
from orthon.optimizers.mixed import Params
from orthon.optimizers.signature import flat_signature


class DionOptions(CommonOptions, total=False):
    """The options of `Dion`, which explains them."""

    rank_fraction: float
    rank_multiple_of: int
    momentum: float
    right_factor: str
    tail: float
    residual_momentum: float | None
    nesterov: bool
    orthonormal_side: str
    power_iterations: int
    route: str
    precision: str | None
    product_dtype: torch.dtype | None


class Dion(NamedOptimizer):
    """Dion: orthonormal updates of low rank (arXiv 2504.05295) with a tail, and AdamW or Lion for what is no matrix.

    For a weight X (m × n) with gradient G, momentum M (m × n) and right factor Q (n × r), m ≤ n::

        N ← momentum·M + G                           with feedback: M + G
        P ← orthonormalize(N Q)                      (m × r)
        R ← Nᵀ P                                     (n × r)
        Q ← orthonormalize(R)                        or another right factor of R
        E ← N − P Rᵀ                                 (m × n), what P leaves out; it is never formed
        X ← (1 − lr·weight_decay)·X − lr·scale·(P Qᵀ + c·E D)
        M ← N − G/(1 + momentum)                     with feedback: momentum·P Rᵀ + residual_momentum·E

    D divides the columns of E by their lengths, and c = min(tail·√((m − r)/n), 2 / length of the shortest column of
    D R). Of a tall matrix, rows and columns change places (`orthonormal_side`).

    `Dion(params, **Dion.PAPER)` is the Dion of the paper: no tail, error feedback, unit columns. In our runs it ends
    behind Dion with a tail in every setting (docs/low_rank.md). A state that was saved before there was a tail goes on
    without one, with its own right factor.

    A model has more than matrices: `Dion.for_model(model)` sends each parameter to the right algorithm. A param group
    chooses its algorithm by name: {"params": ..., "algorithm": "adamw"}.

    It takes the options that all of Orthon's optimizers share, too, such as weight_decay, nonfinite and replicas:
    `help(orthon.optimizers.CommonOptions)` explains them.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options. Names make errors readable.
            They also make the first Q independent of the order of the parameters.
        lr: learning rate of the groups that set none. A number or a one-element tensor.
        rank_fraction: r over min(m, n), in (0, 1]. The work is proportional to it. A lower rank needs more steps to the
            same loss. In our runs of a small LLaMA, Dion with a tail takes as many steps as Muon at rank 1/2, up to
            1.1 times as many at 1/4, and 1.2 to 1.4 times at 1/16. Of Dion without a tail its authors report 1.05–1.15
            times the steps of full rank at 1/2, 1.3–1.5 times at 1/4 and 1.7–3.8 times at 1/16.
        rank_multiple_of: r is rounded up to a multiple of this number, but to at most min(m, n). GPUs multiply in tiles
            of 64 or 128, so that such a multiple takes little more time than the r below it.
        momentum: how much of M stays from step to step, in [0, 1). With feedback: of the update's low-rank part. More
            averages over more steps, and wants a lower lr. Short runs want less: in 300 steps 0.8 ended before 0.9, and
            that before 0.95 (docs/measured/momentum.md, for the paper's Dion and for Muon).
        right_factor: how Q follows from R. "orthonormalize" takes the orthonormal factor of a QR decomposition (arXiv
            2605.16341). The operator norm of P Qᵀ is then 1, instead of up to √r. "normalize" divides the columns by
            their norms, as in the paper: cheaper, and beside a tail 0.06 ± 0.05 worse in the loss of a small model.
            "polar" takes R (RᵀR)^(−1/2): of all Q with orthonormal columns the closest to R, so that P Qᵀ has the
            largest product with M. It depends on the space of P's columns alone, and at rank_fraction=1 P Qᵀ is the
            polar factor of M, as in Muon. Beside "orthonormalize" it takes 4·n·r² operations and about 80·r³, which are
            few at low rank, and most of the step's at full rank.
        tail: how much of an update the directions outside of P get: the root mean square of their singular values, next
            to 1 in the low-rank part. It is at least 0; 0 is none, as in the paper. The tail has columns of one length,
            as in Alice, a low-rank Adam (arXiv 2502.07752). It costs two more reads of M a step and no state. With a
            tail the operator norm of the update may be above 1: for noise about tail·(1 + √((m − r)/n)), and for any
            gradients at most √(‖Q‖² + tail²·(m − r)). So a larger tail brings low rank nearer to Muon, and is less safe
            against gradients with one huge direction. Compressed synchronization gives way to gradients averaged in
            full, since M itself is in the update.
        residual_momentum: how much of what the low-rank part left out stays in M, in [0, 1], or None. None lets all of
            M fade by `momentum`, as in Muon, and saves the product P Rᵀ. Without a tail, directions outside of P then
            fade before they are in any update. 1 is error feedback, as in the paper: nothing is lost, but old gradients
            may wait for long. In between they fade by this factor. With a number, `nesterov` has to be False.
        nesterov: whether the update looks one gradient ahead, as Muon's does. It costs one more pass over M and no
            state. It needs residual_momentum=None, since all of M has to fade at one rate.
        orthonormal_side: the side of the matrix to which P belongs. "short" costs far less work: on a CPU, for matrices
            of 4:1 and rank 1/4, "long" added half of the step's time. "long" needs less state: Q has min(m, n)·r
            numbers instead of max(m, n)·r. No difference in loss was found at rank 1/4 (docs/measured/ablation.md).
            For a square matrix P belongs to the output side either way.
        power_iterations: how often P and Q are refined in one step, at least once. Each costs as much as the first. Two
            or eight in place of one made no difference that we found (docs/low_rank.md).
        route: how several processes work on one matrix. "owners": one of them works on the whole of it. "shards": all
            do, each on its shard. It changes how much is sent and computed, and the result by rounding alone. "auto"
            takes what is faster for the whole step: for large matrices owners, from about 1/rank_fraction processes on.
            Compressed synchronization (`sync_gradients`) needs shards: "auto" takes them for it, and with "owners"
            gradients are averaged in full.
        precision: the arithmetic of the products that make P orthonormal. "float32" is the most accurate. "bf16x3"
            splits each number into two of bfloat16: columns are orthonormal up to 3e-5, usually to 1e-5, and directions
            of relative size 6e-5 count as noise. "tf32" is for CUDA devices alone: up to 1e-3, and 4e-3. None chooses:
            on CUDA devices "tf32" for 16-bit state and "bf16x3" for float32 state, elsewhere "float32". A float64 state
            is always handled in float64.
        product_dtype: the dtype of the four large products M Q, Mᵀ P, P Rᵀ and P Qᵀ. None is the dtype of the state, or
            float32 for float16 state. torch.bfloat16 is faster for float32 state where the hardware multiplies in it:
            on GPUs, and on CPUs with AMX. M and the weights stay in float32 then, but what is added to them is rounded
            to bfloat16, as Muon's polar factors are. Directions below 5e-4 of M's norm wait until they have grown.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "dion"
    PAPER: ClassVar[Mapping[str, Any]] = PAPER

    @flat_signature(algorithm)
    def __init__(self, params: Params, lr: float | Tensor = DEFAULT_LR, **options: Unpack[DionOptions]) -> None:
        super().__init__(params, lr, options)
