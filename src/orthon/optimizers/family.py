"""The optimizers by their names: defaults for `MixedOptimizer`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from orthon.model.routing import param_groups
from orthon.optimizers.mixed import MixedOptimizer, Params


class CommonOptions(TypedDict, total=False):
    """What every optimizer of the family takes beside its own options.

    Attributes:
        weight_decay: decoupled: every step multiplies the weight by 1 − lr·weight_decay; a number or a one-element
            tensor. 0.01 by default.
        cautious_weight_decay: decay only entries that the update does not make larger (arXiv 2510.12402); False by
            default. Low-rank updates are formed as whole matrices then, which costs time.
        lr_scale: factor of lr by the shape of the matrix, see `orthon.lr_scale.lr_factor`: "spectral_unclamped" (the
            default), "original", "match_rms_adamw" or "none".
        betas: of AdamW and Lion, (0.9, 0.95) by default.
        eps: of AdamW, and of second moments of rows; 1e-8 by default.
        state_dtype: of momentum and factors; None, the default, for the weight's own. Norms and factorizations are
            in float32 or better.
        view: how parameters that are not one plain matrix are read as matrices, see `orthon.MatrixView`; usually given
            in a param group.
        maximize: ascend instead of descend.
        nonfinite: what happens at a gradient with infinities or NaNs: "raise", the default, or "skip". Under a
            torch.amp.GradScaler the step is left out in any case.
        capturable: whether a CUDA graph may capture the step, as in torch.optim: "step" of the state lies on the
            parameter's device, and nothing is read on the host. lr and weight_decay that change between replays must be
            tensors on that device. Takes nonfinite="skip", one process, and not polar="svd". False by default.
        seed: of random numbers, which are functions of it, the parameter's name, and row and column; 0 by default.
        replicas: the ranks that train copies on other data, where the parameters' meshes do not tell: those of
            DistributedDataParallel, or a data-parallel axis that fully_shard does not see; a process group, or a
            device mesh with one axis. They share the work.
        sync_gradients: average over the replicas in the optimizer, which nothing else does then: by what is smaller
            than the gradients where the algorithm allows that (Dion's factors, Dion2's random rows), which leaves the
            replicas' momentum different; call `consolidate` before `state_dict`. A missing gradient counts as zero.
    """

    weight_decay: float | Tensor
    cautious_weight_decay: bool
    lr_scale: str
    betas: tuple[float, float]
    eps: float
    state_dtype: torch.dtype | None
    view: Any
    maximize: bool
    nonfinite: str
    capturable: bool
    seed: int
    replicas: ProcessGroup | DeviceMesh | None
    sync_gradients: bool


class _Named(MixedOptimizer):
    """An optimizer whose groups use one algorithm unless they name another."""

    algorithm: ClassVar[str]

    def __init__(self, params: Params, lr: float | Tensor, common: CommonOptions, **own: Any) -> None:
        if unknown := common.keys() - CommonOptions.__annotations__.keys():
            allowed = ", ".join(sorted({"lr", *own, *CommonOptions.__annotations__}))
            names = ", ".join(map(repr, sorted(unknown)))
            raise TypeError(f"{type(self).__name__}: unexpected keyword argument {names}; it takes {allowed}")
        options: dict[str, Any] = {"lr": lr, **own, **common}
        run = {key: options.pop(key) for key in ("nonfinite", "replicas", "sync_gradients") if key in options}
        super().__init__(params, algorithm=self.algorithm, options=options, **run)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float | Tensor = 0.01,
        *,
        scalar_algorithm: str = "adamw",
        scalar_lr: float | Tensor | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        per_head: bool = False,
        **options: Any,
    ) -> Self:
        """Return an optimizer for all parameters of a model: this one for its hidden matrices, another for the rest.

        Args:
            model: any module; `orthon.param_groups` decides by module types and names. The ranks of a
                DistributedDataParallel become `replicas`.
            lr: learning rate of the hidden matrices.
            scalar_algorithm: "adamw" or "lion", for what is no hidden matrix.
            scalar_lr: its learning rate; None for the algorithm's usual one.
            overrides: options by name pattern, see `orthon.param_groups`.
            per_head: whether each attention head is a matrix of its own, see `orthon.param_groups`.
            options: of the constructor.
        """
        inner = getattr(model, "_orig_mod", model)  # of torch.compile
        if isinstance(inner, DistributedDataParallel):
            options.setdefault("replicas", inner.process_group)
        groups = param_groups(
            model,
            cls.algorithm,
            scalar_algorithm,
            lr=lr,
            scalar_lr=scalar_lr,
            overrides=overrides,
            per_head=per_head,
            weight_decay=options.get("weight_decay"),
        )
        return cls(groups, lr, **options)


class Dion(_Named):
    """Dion: orthonormal updates of low rank (arXiv 2504.05295), with AdamW or Lion for what is no matrix.

    For a weight X (m × n) with gradient G, momentum M (m × n) and right factor Q (n × r)::

        M ← M + G
        P ← orthonormalize(M Q)
        R ← Mᵀ P
        M ← M − (1 − momentum)·P Rᵀ
        Q ← R / column_norms(R)
        X ← (1 − lr·weight_decay)·X − lr·scale·P Qᵀ

    A model has more than matrices: `Dion.for_model(model)` sends each parameter to the right algorithm. A
    group chooses its algorithm by name: {"params": ..., "algorithm": "adamw"}.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options. Names make errors
            readable, and the start of Q independent of the order of the parameters.
        lr: learning rate of the groups that set none; a number or a one-element tensor.
        rank_fraction: r over min(m, n), in (0, 1]. The work is proportional to it. To the same loss of a small
            GPT the authors needed 1.05–1.15 times the steps of full rank at 1/2, 1.3–1.5 times at 1/4 and
            1.7–3.8 times at 1/16, the more the larger the batch.
        rank_multiple_of: r is rounded up to a multiple of this, and to at most min(m, n).
        momentum: share of the update's low-rank part that stays in M, in [0, 1).
        right_factor: "normalize" divides the columns of R by their norms (the paper); "orthonormalize" takes
            the orthonormal factor of its QR decomposition (arXiv 2605.16341), which makes the operator norm
            of the update 1 instead of up to √r.
        orthonormal_side: which side of the matrix P belongs to. "short" costs far less work (at 4:1 and rank
            1/4 on a CPU, "long" added half of the step), and "long" less state: Q has min(m, n)·r instead of
            max(m, n)·r numbers. In a small model "short" was 0.01–0.02 better in loss at rank 1/16, equal at
            1/4, and 0.01 worse at full rank. A square matrix has P on the output side either way.
        power_iterations: how often P and Q are refined in one step, at least once.
        precision: of the products that make P orthonormal. "float32"; "tf32", on CUDA devices alone, makes its columns
            orthonormal up to 1e-3 and takes directions of relative size 4e-3 for noise; "bf16x3", products of numbers
            split into two of bfloat16, up to 3e-5, and directions of 6e-5. None is "tf32" for 16-bit state and
            "bf16x3" for float32 on CUDA devices, and "float32" elsewhere. Of a float64 state, all is in float64.
        product_dtype: in which the four large products are computed, M Q, Mᵀ P, P Rᵀ and P Qᵀ. None is that of the
            state, and float32 for float16. torch.bfloat16 suits float32 state where hardware multiplies in it, as
            GPUs do, and CPUs with AMX: M and the weights stay in float32, what is added to them is rounded to
            bfloat16 as Muon's polar factors are, and directions below 5e-4 of M's norm wait until they have grown.
        common: see `orthon.optimizers.family.CommonOptions`.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "dion"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.01,
        *,
        rank_fraction: float = 0.25,
        rank_multiple_of: int = 1,
        momentum: float = 0.95,
        right_factor: str = "normalize",
        orthonormal_side: str = "short",
        power_iterations: int = 1,
        precision: str | None = None,
        product_dtype: torch.dtype | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            common,
            rank_fraction=rank_fraction,
            rank_multiple_of=rank_multiple_of,
            momentum=momentum,
            right_factor=right_factor,
            orthonormal_side=orthonormal_side,
            power_iterations=power_iterations,
            precision=precision,
            product_dtype=product_dtype,
        )


class Muon(_Named):
    """Muon: the polar factor of the momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    For a weight X (m × n) with gradient G and momentum M (m × n)::

        M ← momentum·M + G
        U ← momentum·M + G                        M without nesterov
        X ← (1 − lr·weight_decay)·X − lr·scale·polar(U)

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none; a number or a one-element tensor.
        momentum: share of M that stays, in [0, 1).
        nesterov: whether the update looks one gradient ahead.
        ema: M is an exponential average, momentum·M + (1 − momentum)·G, as in `torch.optim.Muon`. Only the scale of M
            changes, not the update.
        polar: how the polar factor is found: "polar_express" (arXiv 2505.16932), "newton_schulz" (Jordan's quintic,
            torch's default), or "svd", which is exact and slow.
        polar_steps: number of iterations of the first two. More bring small singular values closer to 1, and also raise
            the rounding noise of directions that M does not have: in float32 to 0.001 in 10 steps, and to 1 in 20.
        polar_dtype: in which it is computed: torch.bfloat16, torch.float32 or torch.float64. None is bfloat16 on GPUs
            and on CPUs that multiply it in hardware (AMX), float32 on other CPUs, and float64 for float64.
        polar_route: where matrices lie on several ranks: "owners" sends each to one of them, "shards" sums Gram
            matrices, "auto" takes what costs less; `orthon.explain` tells which.
        common: see `orthon.optimizers.family.CommonOptions`.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "muon"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.01,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ema: bool = False,
        polar: str = "polar_express",
        polar_steps: int = 5,
        polar_dtype: torch.dtype | None = None,
        polar_route: str = "auto",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            common,
            momentum=momentum,
            nesterov=nesterov,
            ema=ema,
            polar=polar,
            polar_steps=polar_steps,
            polar_dtype=polar_dtype,
            polar_route=polar_route,
        )


class NorMuon(_Named):
    """NorMuon: Muon, with the rows of its update brought to one size over time (arXiv 2510.05491).

    With O = polar(U) as in `Muon`, and v (m × 1)::

        v ← beta2·v + (1 − beta2)·mean_j O²
        Ô ← O / (√v + eps), rescaled to the Frobenius norm of O
        X ← (1 − lr·weight_decay)·X − lr·scale·Ô

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none; a number or a one-element tensor.
        momentum: as in `Muon`.
        beta2: decay of v, in [0, 1).
        nesterov: as in `Muon`.
        ema: as in `Muon`.
        polar: as in `Muon`.
        polar_steps: as in `Muon`.
        polar_dtype: as in `Muon`.
        polar_route: as in `Muon`.
        common: see `orthon.optimizers.family.CommonOptions`.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "normuon"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.01,
        *,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        ema: bool = False,
        polar: str = "polar_express",
        polar_steps: int = 5,
        polar_dtype: torch.dtype | None = None,
        polar_route: str = "auto",
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            common,
            momentum=momentum,
            beta2=beta2,
            nesterov=nesterov,
            ema=ema,
            polar=polar,
            polar_steps=polar_steps,
            polar_dtype=polar_dtype,
            polar_route=polar_route,
        )


class Dion2(_Named):
    """Dion2: the polar factor of the rows of the momentum that have grown most (arXiv 2512.16928).

    For a weight X (m × n) with gradient G and momentum M (m × n); where m > n, columns take the place of the rows::

        M ← M + G
        S ← the ⌈fraction·m⌉ rows of M with the largest ℓ1 norms
        X ← (1 − lr·weight_decay)·X
        X[S] ← X[S] − lr·scale·polar(M[S])
        M[S] ← momentum·M[S]

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none; a number or a one-element tensor.
        fraction: of the rows, in (0, 1]. The work falls with its square, and what is communicated with itself.
        momentum: share of the selected rows of M that stays, in [0, 1).
        selection: "global" takes norms over the whole matrix, and the same rows on every layout; on an accelerator,
            ranks that divide the rows wait once for each batch to know how many are where. "local" takes the same
            fraction of the rows of each rank, so that the update depends on the layout. "random" takes rows by
            (seed, name, step), and averages them alone with `sync_gradients`.
        lr_scale_by_fraction: multiply lr by 1/√fraction (arXiv 2608.11612), for a learning rate tuned for Muon.
        polar: as in `Muon`.
        polar_steps: as in `Muon`.
        polar_dtype: as in `Muon`.
        common: see `orthon.optimizers.family.CommonOptions`.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "dion2"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.01,
        *,
        fraction: float = 0.25,
        momentum: float = 0.95,
        selection: str = "global",
        lr_scale_by_fraction: bool = False,
        polar: str = "polar_express",
        polar_steps: int = 5,
        polar_dtype: torch.dtype | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            common,
            fraction=fraction,
            momentum=momentum,
            selection=selection,
            lr_scale_by_fraction=lr_scale_by_fraction,
            polar=polar,
            polar_steps=polar_steps,
            polar_dtype=polar_dtype,
        )


class Dion3(_Named):
    """Dion3: Dion2 with the rows of its update brought to one size over time, as in NorMuon (arXiv 2608.11612).

    Also called NorDion2. Rows of X that have no update keep their second moment; where Dion2 selects columns, all
    rows have one, over these columns.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        lr: learning rate of the groups that set none; a number or a one-element tensor.
        fraction: as in `Dion2`.
        momentum: as in `Dion2`.
        beta2: as in `NorMuon`.
        selection: as in `Dion2`.
        lr_scale_by_fraction: as in `Dion2`.
        polar: as in `Muon`.
        polar_steps: as in `Muon`.
        polar_dtype: as in `Muon`.
        common: see `orthon.optimizers.family.CommonOptions`.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    algorithm = "dion3"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.01,
        *,
        fraction: float = 0.25,
        momentum: float = 0.95,
        beta2: float = 0.95,
        selection: str = "global",
        lr_scale_by_fraction: bool = False,
        polar: str = "polar_express",
        polar_steps: int = 5,
        polar_dtype: torch.dtype | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            common,
            fraction=fraction,
            momentum=momentum,
            beta2=beta2,
            selection=selection,
            lr_scale_by_fraction=lr_scale_by_fraction,
            polar=polar,
            polar_steps=polar_steps,
            polar_dtype=polar_dtype,
        )


NorDion2 = Dion3
