"""What an update rule is: its options, its state, and its step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.lr_scale import LR_SCALES
from orthon.algorithms.options import (
    Group,
    Option,
    choice,
    flag,
    float_dtype_or_none,
    integer,
    number_or_tensor,
    own,
    structural,
)
from orthon.algorithms.state import Entries
from orthon.sharding import Layout, Step
from orthon.sharding.matrix_view import MatrixView


def _is_view(value: object) -> bool:
    return value is None or isinstance(value, MatrixView | Mapping)


FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
        name: by which a param group chooses it.
        options: what a param group may set for it, beside "params".
        entries: what it keeps of a parameter of the given shape, or of matrices of this shape.
        update: makes one step on a batch, in place; a computation that may pause for collectives.
        for_matrices: whether it takes matrices alone, in batches of one shape.
        rank: for explanations, the rank of its update to a matrix of the given shape; None if it is not low.
        temporaries: about how many bytes a step takes for a matrix of the given layout and dtype, beside weights,
            gradients and state.
        compresses: whether, where the replicas' gradients differ, it averages over them with fewer numbers than the
            gradient has; None if it never does.
        cost: the work on one whole matrix of the given shape, for a rule that gives each to one of the ranks that
            hold parts of it; None for others.
        route: how it works on a number of whole matrices of the given layout: "alone", by "owners" or on "shards".
        check_layout: raises a ValueError for matrices that lie so that it cannot update them.
        polar_dtype: in which it computes on whole matrices, of which the momentum is stored in the given one.
        counts: whether its state's "step" is the number of steps that the parameter has been through, this included.
    """

    name: str
    options: Mapping[str, Option]
    entries: Callable[[tuple[int, ...], Group], Entries]
    update: Callable[[Batch, Group], Step[None]]
    for_matrices: bool = False
    rank: Callable[[tuple[int, ...], Group], int] | None = None
    temporaries: Callable[[Layout, Group, torch.dtype], float] | None = None
    compresses: Callable[[Layout, Group], bool] | None = None
    cost: Callable[[tuple[int, ...], Group], float] | None = None
    route: Callable[[Layout, int, Group], str] | None = None
    check_layout: Callable[[Layout, Group], None] | None = None
    polar_dtype: Callable[[torch.dtype, Layout, Group], torch.dtype] | None = None
    counts: Callable[[Group], bool] = lambda _: False

    def check_parameter(self, param: Tensor, group: Group, where: str) -> None:
        """Raise a TypeError or ValueError if this rule cannot update `param`, which `where` names."""
        if param.dtype not in FLOAT_DTYPES:
            allowed = ", ".join(map(str, FLOAT_DTYPES))
            raise TypeError(f"{where}: dtype should be one of {allowed}, but is {param.dtype}")
        if not self.for_matrices:
            return
        if group["view"] is None and (param.ndim != 2 or param.numel() == 0):
            raise ValueError(
                f"{where}: {self.name} updates matrices, so the shape should be (rows, columns), both at least 1, "
                f"but is {tuple(param.shape)}; tell by view=MatrixView(...) in its group how it is read as matrices, "
                "give it to another algorithm, such as 'adamw', or let orthon.param_groups(model) choose"
            )
        if group["view"] is not None:
            try:
                MatrixView.of(group["view"]).read(tuple(param.shape))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


# What every rule takes.
COMMON_OPTIONS: Mapping[str, Option] = {
    "lr": number_or_tensor(0.01, ">= 0", lambda v: 0 <= v < float("inf")),
    "weight_decay": number_or_tensor(0.01, ">= 0", lambda v: 0 <= v < float("inf")),
    "maximize": flag(False),
    "cautious_weight_decay": flag(False),
    "capturable": own(flag(False)),
}

# What rules for matrices take beside.
MATRIX_OPTIONS: Mapping[str, Option] = {
    **COMMON_OPTIONS,
    "lr_scale": choice(*LR_SCALES),
    "state_dtype": float_dtype_or_none(),
    "seed": integer(0, at_least=0),
    "view": structural(Option(None, "a MatrixView, a mapping of its attributes, or None", _is_view)),
}
