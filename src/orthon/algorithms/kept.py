"""A tensor that a rule keeps between steps, with verbs that leave it as it is in a step that is to be left out."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from orthon.algorithms.gate import gated


class Kept:
    """What a batch keeps under one key.

    Each verb takes what has the shape of what is kept. For a matrix rule that is one tensor (b, ...), or a list of b.

    Args:
        key: under which it is kept.
        parts: its tensors, which the verbs change in place.
        gate: of the batch.
        writing: in which block the verbs write, see `Batch.writing`.
    """

    def __init__(
        self, key: str, parts: Sequence[Tensor], *, gate: Tensor | None, writing: AbstractContextManager[object]
    ) -> None:
        self.key, self.parts, self._gate, self._writing = key, list(parts), gate, writing

    @property
    def value(self) -> Tensor:
        """The one tensor of a matrix rule, (b, ...). To be read only. A rule of another kind has `parts`."""
        if len(self.parts) != 1:
            raise ValueError(f"kept({self.key!r}).value: there are {len(self.parts)} tensors; use .parts")
        return self.parts[0]

    def lerp_(self, x: Tensor | Sequence[Tensor], weight: float) -> None:
        """Go a part of the way to `x`: kept ← kept + weight·(x − kept)."""
        self.add_(torch._foreach_sub(self._fitting(x), self.parts), weight, overwrite=True)

    def add_(self, x: Tensor | Sequence[Tensor], weight: float = 1.0, *, overwrite: bool = False) -> None:
        """Add a multiple of `x`: kept ← kept + weight·x. With `overwrite`, x may be overwritten, which saves memory."""
        news = self._fitting(x)
        if overwrite:
            torch._foreach_mul_(news, weight)
        elif weight != 1:
            news = list(torch._foreach_mul(news, weight))
        with self._writing:
            torch._foreach_add_(self.parts, [gated(new, self._gate) for new in news])

    def mul_(self, factor: float) -> None:
        """Multiply by a number: kept ← factor·kept."""
        if self._gate is not None:
            wide = torch.full((), factor, dtype=torch.float64, device=self._gate.device)
            with self._writing:
                torch._foreach_mul_(self.parts, torch.where(self._gate > 0, wide, 1.0))
            return
        with self._writing:
            torch._foreach_mul_(self.parts, factor)

    def copy_(self, x: Tensor | Sequence[Tensor]) -> None:
        """Take over the values of `x`."""
        with self._writing:
            for part, new in zip(self.parts, self._fitting(x), strict=True):
                part.copy_(new if self._gate is None else torch.where(self._gate > 0, new, part))

    def _fitting(self, x: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Return tensors of the shapes of `parts`."""
        each = [x] if isinstance(x, Tensor) else list(x)
        shapes, needed = [new.shape for new in each], [part.shape for part in self.parts]
        if len(needed) == 1 and shapes == [needed[0][1:]] * needed[0][0] and shapes != needed:
            return [torch.stack(each)]  # one for each matrix
        if shapes != needed:
            raise ValueError(
                f"kept({self.key!r}): should be given the shapes {list(map(tuple, needed))}, but is given "
                f"{list(map(tuple, shapes))}"
            )
        return each
