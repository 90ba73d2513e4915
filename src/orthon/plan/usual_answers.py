"""What the host would read of values, where there are none."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class UsualAnswers(TorchDispatchMode):
    """Lets the host read booleans of tensors on meta: each is true, as it is for usual values.

    All of Orthon's conditions that a step can be shorter by hold for usual values: columns are in range, and far from
    dependent.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation, or answer in its place."""
        if func in (aten._local_scalar_dense.default, aten.equal.default) and args[0].is_meta:
            assert func is aten.equal.default or args[0].dtype == torch.bool, "only conditions have a usual answer"
            return True
        return func(*args, **(kwargs or {}))
