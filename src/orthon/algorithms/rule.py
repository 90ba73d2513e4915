"""What an update rule is: its options, its state, and its step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orthon.batch import Batch
from orthon.options import Group, Option, flag, number, number_or_tensor
from orthon.sharding import Layout, Step

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
        name: by which a param group chooses it.
        options: what a param group may set for it, beside "params".
        new_state: from a parameter's name, the parameter, its group and its layout, the state before the first
            step, which lies as the parameter does.
        update: makes one step on a batch, in place; a computation that may pause for collectives.
        for_matrices: whether it takes matrices alone, in batches of one shape.
        rank: for explanations, the rank of its update to a matrix of the given shape; None if it is not low.
        largest: the most numbers of one matrix, or of one factor of it, that a rank holds in a step.
        compresses: whether, where the replicas' gradients differ, it averages over them with fewer numbers than the
            gradient has; None if it never does. It then keeps `own_state`.
        own_state: keys of state that differs between replicas then.
    """

    name: str
    options: Mapping[str, Option]
    new_state: Callable[[str, Tensor, Group, Layout], dict[str, Tensor]]
    update: Callable[[Batch, Group], Step[None]]
    for_matrices: bool = False
    rank: Callable[[tuple[int, ...], Group], int] | None = None
    largest: Callable[[Layout, Group], int] | None = None
    compresses: Callable[[Layout, Group], bool] | None = None
    own_state: tuple[str, ...] = ()

    def check_parameter(self, param: Tensor, where: str) -> None:
        """Raise a TypeError or ValueError if this rule cannot update `param`, which `where` names."""
        if param.dtype not in FLOAT_DTYPES:
            allowed = ", ".join(map(str, FLOAT_DTYPES))
            raise TypeError(f"{where}: dtype should be one of {allowed}, but is {param.dtype}")
        if self.for_matrices and (param.ndim != 2 or param.numel() == 0):
            raise ValueError(
                f"{where}: {self.name} updates matrices, so the shape should be (rows, columns), both at least 1, "
                f"but is {tuple(param.shape)}; give it to another algorithm, such as 'adamw', or let "
                "orthon.param_groups(model) choose"
            )


# What every rule takes.
COMMON_OPTIONS: Mapping[str, Option] = {
    "lr": number_or_tensor(0.01, ">= 0", lambda v: 0 <= v < float("inf")),
    "weight_decay": number(0.01, ">= 0", lambda v: 0 <= v < float("inf")),
    "maximize": flag(False),
}
