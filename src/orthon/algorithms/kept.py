"""A tensor that a rule keeps between steps, with verbs that leave it as it is in a step that is to be left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from orthon.algorithms.batch import Batch


class Kept:
    """What a batch keeps under one key.

    Args:
        batch: to which it belongs.
        parts: its tensors, which the verbs change in place.
    """

    def __init__(self, batch: "Batch", parts: Sequence[Tensor]) -> None:
        self._batch, self.parts = batch, list(parts)

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
        with self._batch.writing:
            torch._foreach_add_(self.parts, self._gated(news))

    def mul_(self, factor: float) -> None:
        """Multiply by a number: kept ← factor·kept."""
        with self._batch.writing:
            torch._foreach_mul_(self.parts, 1 - self._batch.gated(1 - factor))

    def copy_(self, x: Tensor | Sequence[Tensor]) -> None:
        """Take over the values of `x`."""
        gate = self._batch.gate
        with self._batch.writing:
            for part, new in zip(self.parts, _listed(x), strict=True):
                part.copy_(new if gate is None else torch.where(gate > 0, new, part))

    def _gated(self, news: list[Tensor]) -> list[Tensor]:
        return news if self._batch.gate is None else [self._batch.gated(new) for new in news]


def _listed(x: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)
