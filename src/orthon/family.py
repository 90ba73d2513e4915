"""The optimizers by their names: defaults for `MixedOptimizer`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from orthon.optimizer import MixedOptimizer, Params
from orthon.routing import param_groups


class Dion(MixedOptimizer):
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
        betas: of AdamW and Lion.
        eps: of AdamW.
        weight_decay: decoupled: every step multiplies the weight by 1 − lr·weight_decay.
        lr_scale: factor of lr by the shape of the matrix, see `orthon.lr_scale.lr_factor`:
            "spectral_unclamped", "original", "match_rms_adamw" or "none".
        state_dtype: of M and Q; None for the weight's own. The large products run in it (in float32 for
            float16), norms and factorizations in float32 or better.
        maximize: ascend instead of descend.
        nonfinite: what happens at a gradient with infinities or NaNs: "raise" or "skip".
        seed: of the start of Q, which is a function of it, the parameter's name, and row and column.
        replicas: the ranks that train copies on other data, where the parameters' meshes do not tell: those of
            DistributedDataParallel, or a data-parallel axis that fully_shard does not see; a process group, or a
            device mesh with one axis. They share the orthonormalization.
        sync_gradients: average over the replicas in the optimizer, which nothing else does then: P and R of the
            matrices, with (m + n)·r numbers instead of m·n, and gradients where that is cheaper or the rule is not
            Dion's. The momentum of the replicas then differs; call `consolidate` before `state_dict`. A missing
            gradient counts as zero.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

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
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        lr_scale: str = "spectral_unclamped",
        state_dtype: torch.dtype | None = None,
        maximize: bool = False,
        nonfinite: str = "raise",
        seed: int = 0,
        replicas: ProcessGroup | DeviceMesh | None = None,
        sync_gradients: bool = False,
    ) -> None:
        options = {
            "lr": lr,
            "rank_fraction": rank_fraction,
            "rank_multiple_of": rank_multiple_of,
            "momentum": momentum,
            "right_factor": right_factor,
            "orthonormal_side": orthonormal_side,
            "power_iterations": power_iterations,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "lr_scale": lr_scale,
            "state_dtype": state_dtype,
            "maximize": maximize,
            "seed": seed,
        }
        super().__init__(
            params,
            algorithm="dion",
            nonfinite=nonfinite,
            options=options,
            replicas=replicas,
            sync_gradients=sync_gradients,
        )

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float | Tensor = 0.01,
        *,
        scalar_algorithm: str = "adamw",
        scalar_lr: float | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        per_head: bool = False,
        **options: Any,
    ) -> "Dion":
        """Return an optimizer for all parameters of a model: Dion for its hidden matrices, another for the rest.

        Args:
            model: any module; `orthon.param_groups` decides by module types and names. The ranks of a
                DistributedDataParallel become `replicas`.
            lr: learning rate of the hidden matrices.
            scalar_algorithm: "adamw" or "lion", for what is no hidden matrix.
            scalar_lr: its learning rate; None for the algorithm's usual one.
            overrides: options by name pattern, see `orthon.param_groups`.
            per_head: read each attention head as a matrix of its own, see `orthon.param_groups`.
            options: of the constructor.
        """
        inner = getattr(model, "_orig_mod", model)  # of torch.compile
        if isinstance(inner, DistributedDataParallel):
            options.setdefault("replicas", inner.process_group)
        groups = param_groups(
            model,
            "dion",
            scalar_algorithm,
            lr=lr,
            scalar_lr=scalar_lr,
            overrides=overrides,
            per_head=per_head,
            weight_decay=options.get("weight_decay"),
        )
        return cls(groups, lr, **options)
