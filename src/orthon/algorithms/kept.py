"""A tensor that a rule keeps between steps, with verbs that leave it as it is in a step that is to be left out."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from orthon.algorithms.gate import gated


class Kept:
    """What a batch keeps under one key.

    Args:
        parts: its tensors, which the verbs change in place.
        gate: of the batch.
        writing: in which block the verbs write, see `Batch.writing`.
    """

    def __init__(
        self, parts: Sequence[Tensor], *, gate: Tensor | None, writing: AbstractContextManager[object]
    ) -> None:
        self.parts, self._gate, self._writing = list(parts), gate, writing

    @property
    def value(self) -> Tensor:
        """The one tensor of a matrix rule, (b, ...). To be read only."""
        (value,) = self.parts
        return value

    def lerp_(self, x: Tensor | Sequence[Tensor], weight: float) -> None:
        """Go a part of the way to `x`: kept ← kept + weight·(x − kept)."""
        self.add_(torch._foreach_sub(_listed(x), self.parts), weight, overwrite=True)

    def add_(self, x: Tensor | Sequence[Tensor], weight: float = 1.0, *, overwrite: bool = False) -> None:
        """Add a multiple of `x`: kept ← kept + weight·x. With `overwrite`, x may be overwritten, which saves memory."""
        news = _listed(x)
        if overwrite:
            torch._foreach_mul_(news, weight)
        elif weight != 1:
            news = list(torch._foreach_mul(news, weight))
        with self._writing:
            torch._foreach_add_(self.parts, [gated(new, self._gate) for new in news])

    def mul_(self, factor: float) -> None:
        """Multiply by a number: kept ← factor·kept."""
        with self._writing:
            torch._foreach_mul_(self.parts, factor if self._gate is None else 1 - (1 - factor) * self._gate)

    def copy_(self, x: Tensor | Sequence[Tensor]) -> None:
        """Take over the values of `x`."""
        with self._writing:
            for part, new in zip(self.parts, _listed(x), strict=True):
                part.copy_(new if self._gate is None else torch.where(self._gate > 0, new, part))


def _listed(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)
