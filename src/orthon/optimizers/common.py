"""What the optimizers with one main algorithm share: options, constructor, and `for_model`."""

from collections.abc import Mapping, Set
from typing import Any, ClassVar, Self, TypedDict

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from orthon.algorithms import RULES
from orthon.algorithms.names import HINTS, mistaken
from orthon.algorithms.options import number
from orthon.machines import Machine
from orthon.model.asked import check_model, known_rule
from orthon.model.distributed import ranks_of_frozen, replicas_of, warn_if_idle
from orthon.model.routing import param_groups
from orthon.optimizers.known import KnownParameters
from orthon.optimizers.mixed import MixedOptimizer, Params
from orthon.sharding.matrix_view import MatrixView
from orthon.step.words import warn

DEFAULT_LR: float = RULES["dion"].options["lr"].default

_RATIO = number(0.15, ">= 0", lambda v: 0 <= v < float("inf"))

# Options of the whole optimizer. All others may differ between param groups.
_OF_THE_OPTIMIZER = ("nonfinite", "replicas", "sync_gradients", "machine", "wave_memory", "others")


class CommonOptions(TypedDict, total=False):
    """The keyword arguments that all of Orthon's optimizers take, beside their own.

    `help(orthon.Dion)` shows the defaults.

    Attributes:
        weight_decay: decoupled weight decay (arXiv 1711.05101). Every step multiplies the weight by
            1 − lr·weight_decay, so that a larger lr wants a smaller one. Without it, weights of matrices grow over long
            runs (arXiv 2502.16982). A number or a one-element tensor.
        cautious_weight_decay: whether only those entries decay that the update does not make larger
            (arXiv 2510.12402). It takes time, because updates of low rank must be formed as whole matrices.
        adjust_lr_fn: the factor of lr that depends on the shape of the matrix, explained in
            `orthon.algorithms.adjusted_lr.lr_factor`: "spectral_unclamped", "original", "match_rms_adamw" or "none".
        betas: decay rates of AdamW (arXiv 1711.05101) and of Lion (arXiv 2302.06675), for the parameters that these
            update. Larger ones average over more steps: less noise, and slower to follow.
        eps: of AdamW, and of the second moments of rows in NorMuon and Dion3. Keeps them from dividing by zero. A
            larger one makes the updates of small gradients smaller.
        state_dtype: dtype of momentum and factors. None is the weight's own. For weights in bfloat16, torch.float32
            takes twice the memory, and no small gradient is rounded away in the momentum. Norms and factorizations are
            computed in float32 or better in any case.
        view: how a parameter is read as matrices, if it is not one plain matrix: an `orthon.MatrixView`. Usually it
            is given in a param group.
        maximize: whether to ascend instead of descend.
        nonfinite: what happens if a gradient has an infinity or a NaN, or numbers so large that sums of them would
            overflow (1e33 in float32). "raise" raises an error that names the parameter. "skip" leaves the step out.
            Under a torch.amp.GradScaler the step is left out in any case.
        capturable: whether a CUDA graph may capture the step, as in torch.optim. Then "step" in the state lies on the
            parameter's device, and the host reads nothing. An lr or a weight_decay that changes between replays must be
            a tensor on that device. It needs nonfinite="skip" and one process, and excludes polar="svd".
        seed: of random numbers. They depend on the seed, the parameter's name, and row and column, and on nothing else.
        replicas: the processes that train copies of the parameters on other data: a process group, a device mesh with
            one axis, or "world" for all processes. They share the work. Give it where the parameters' own meshes do not
            show these processes: with DistributedDataParallel, or with a data-parallel axis that `fully_shard` does not
            see.
        sync_gradients: whether the optimizer averages over the replicas. Nothing else may do so then. It sends less
            than the gradients where the algorithm allows that: Dion's factors without a tail, Dion2's random rows. The
            momentum then differs between replicas, so call `consolidate` before `state_dict`. A missing gradient counts
            as zero.
        machine: on which the processes run, where several work together: a name in `orthon.machines.MACHINES`, or a
            `Machine`. It decides who works on what, and never what is computed. None looks at the device.
        wave_memory: bytes that a process may take for the whole matrices on which it works at a time, where several
            work together; one matrix, if that is more. None is a sixteenth of the device's memory.
        others: the algorithm for those parameters that are no matrices, such as "adamw", in groups that name none:
            vectors, and what has more than two dims. They have the options of their group, also its lr. It is for
            programs that call the class with `model.parameters()`; `for_model` knows more about a
            model, such as which matrices are embeddings. None refuses such parameters.
        foreach: how AdamW computes, as in torch.optim. It has no effect on the other algorithms.
        fused: how AdamW computes, as in torch.optim. It has no effect on the other algorithms.
    """

    weight_decay: float | Tensor
    cautious_weight_decay: bool
    adjust_lr_fn: str
    betas: tuple[float, float]
    eps: float
    state_dtype: torch.dtype | None
    view: MatrixView | Mapping[str, Any] | None
    maximize: bool
    nonfinite: str
    capturable: bool
    seed: int
    replicas: ProcessGroup | DeviceMesh | str | None
    sync_gradients: bool
    machine: Machine | str | None
    wave_memory: float | None
    others: str | None
    foreach: bool | None
    fused: bool | None


SHARED = CommonOptions.__annotations__
"""The names of the shared options, in the order in which signatures show them."""


class NamedOptimizer(MixedOptimizer):
    """An optimizer named after an algorithm, which updates all groups that do not name another.

    Args:
        params: as for `MixedOptimizer`.
        lr: learning rate of the groups that set none.
        options: the algorithm's own options and shared ones, by name.
    """

    algorithm: ClassVar[str]

    def __init__(self, params: Params, lr: float | Tensor, options: Mapping[str, Any]) -> None:
        own = {
            name: option.default
            for name, option in RULES[self.algorithm].options.items()
            if name != "lr" and name not in SHARED
        }
        if unknown := options.keys() - own.keys() - SHARED.keys():
            known = sorted({"lr", *own, *SHARED})
            names = ", ".join(f"{name!r}{mistaken(name, None, known)}" for name in sorted(unknown))
            raise TypeError(f"{type(self).__name__}: unexpected keyword argument {names}; it takes {', '.join(known)}")
        of_groups = {"lr": lr, **own, **options}
        of_all = {name: of_groups.pop(name) for name in _OF_THE_OPTIMIZER if name in of_groups}
        super().__init__(params, algorithm=self.algorithm, options=of_groups, **of_all)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float | Tensor = DEFAULT_LR,
        *,
        scalar_algorithm: str = "adamw",
        scalar_lr: float | Tensor | None = None,
        scalar_lr_ratio: float | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        per_head: bool = False,
        **options: Any,
    ) -> Self:
        """Return an optimizer for all parameters of a model: this algorithm for hidden matrices, another for the rest.

        Args:
            model: any module. `orthon.param_groups` decides by the types and names of its modules. The processes of a
                DistributedDataParallel, wherever it is in the model, become `replicas`.
            lr: learning rate of the hidden matrices.
            scalar_algorithm: what updates the rest, "adamw" or "lion", as in `orthon.param_groups`.
            scalar_lr: learning rate of the rest. None is the usual one of `scalar_algorithm`, 0.003 for AdamW and
                0.0003 for Lion, whatever lr is.
            scalar_lr_ratio: scalar_lr over lr, instead of scalar_lr. It ties the two, so that a search over lr moves
                both. Our runs of a small LLaMA had 0.003 for AdamW and found the best lr of Dion and Muon between 0.02
                and 0.06: ratios of 0.05 to 0.15. A tie makes a search one number shorter, but the best ratio is not
                the same for all lr. Where lr is a tensor, scalar_lr becomes a tensor of its own.
            overrides: options by name pattern, as in `orthon.param_groups`.
            per_head: whether each attention head is a matrix of its own, as in `orthon.param_groups`.
            options: further keyword arguments of the constructor.

        Warns:
            UserWarning: if no parameter goes to this algorithm, for an option that has no effect, as none of the
                algorithms has it, and as `orthon.param_groups` does. From `step`, if a parameter that was frozen here
                has a gradient.

        Raises:
            TypeError, ValueError: as the constructor and `orthon.param_groups` do, and for scalar_lr with a ratio.
        """
        check_model(model, f"{cls.__name__}.for_model")
        lr = RULES[cls.algorithm].options["lr"].check("lr", lr, cls.__name__)
        called = f"{cls.__name__}.for_model: scalar_algorithm"
        scalar_algorithm = known_rule(called, scalar_algorithm, elementwise=True)
        if scalar_lr_ratio is not None:
            if scalar_lr is not None:
                raise ValueError(
                    f"{cls.__name__}.for_model: give scalar_lr or scalar_lr_ratio, not both; they are {scalar_lr!r} "
                    f"and {scalar_lr_ratio!r}"
                )
            scalar_lr = _RATIO.check("scalar_lr_ratio", scalar_lr_ratio, f"{cls.__name__}.for_model") * lr
        elif scalar_lr is not None:
            scalar_lr = RULES[scalar_algorithm].options["lr"].check("scalar_lr", scalar_lr, f"{cls.__name__}.for_model")
        if "replicas" not in options and (replicas := replicas_of(model)) is not None:
            options["replicas"] = replicas
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
        warn_if_idle(model, groups, cls.algorithm, cls.__name__)
        optimizer = cls(groups, lr, **options)
        optimizer._known = KnownParameters(
            model, scalar_algorithm if RULES[cls.algorithm].work.takes_matrices else None
        )
        _warn_of_unused(options, {cls.algorithm, scalar_algorithm, *(g["algorithm"] for g in groups)}, cls.__name__)
        if (frozen := ranks_of_frozen(model)) is not None:
            optimizer.work_beside(*frozen)
        return optimizer


def _warn_of_unused(options: Mapping[str, Any], algorithms: Set[str], owner: str) -> None:
    """Warn of options that none of these algorithms has.

    Torch's hints are for whatever follows them. Programs that hand over all options give some at their defaults.
    """
    used = {*HINTS, *_OF_THE_OPTIMIZER, *(name for each in algorithms for name in RULES[each].options)}
    defaults = [(name, option.default) for rule in RULES.values() for name, option in rule.options.items()]
    if unused := [name for name, value in options.items() if name not in used and (name, value) not in defaults]:
        warn(
            f"{owner}.for_model: {', '.join(unused)} has no effect, as no parameter goes to an algorithm that has it; "
            f"the algorithms are {', '.join(sorted(algorithms))}"
        )
