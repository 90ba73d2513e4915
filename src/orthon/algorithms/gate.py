"""The gate of a step that may be left out, and whether all that writes to weights and state knows it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from orthon.sharding import local


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """Return `x`, or zeros where the gate is 0, whatever `x` is then."""
    return x if gate is None else torch.where(gate > 0, x, 0)


class Seal:
    """Remembers how often torch has written to the first weight of a batch and its state. Torch itself counts that.

    A rule treats all weights of a batch alike, and to look at all would take longer than many a step. What is written
    within `with seal:` may be written.

    Args:
        weight: the first weight of the batch.
        state: of that weight, whose tensors may be replaced by others.
        rule: the name of the rule that works on them, for the error.
    """

    def __init__(self, weight: Tensor, state: Mapping[str, Tensor], rule: str) -> None:
        self._weight, self._state, self._rule = weight, state, rule
        self._count = self._count_now()

    def __enter__(self) -> None:
        self.check()

    def __exit__(self, *_: object) -> None:
        self.renew()

    def renew(self) -> None:
        """Take what has been written so far for what may have been written."""
        self._count = self._count_now()

    def check(self) -> None:
        """Raise a RuntimeError if somebody has written since the last time."""
        if self._count != self._count_now():
            raise RuntimeError(
                f"the rule {self._rule!r} has written to weights or state without the verbs of its batch, so that a "
                "step that is to be left out would change them; use batch.descend(...) and the verbs of "
                "batch.kept(...)"
            )

    def _count_now(self) -> int:
        # Tensors made in inference mode are not counted.
        tensors = (self._weight, *map(local, self._state.values()))
        return sum(tensor._version for tensor in tensors if not tensor.is_inference())
