"""Groups that were made with several learning rates, and get one for all of them from a loop or a scheduler."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any


class Rates:
    """Notices in the first steps whether several learning rates have become one.

    Loops with `for group in optimizer.param_groups: group["lr"] = lr` do so, and `OneCycleLR(optimizer, max_lr=0.02)`.
    Embeddings are then trained with the learning rate of matrices, without an error. Steps with a learning rate of 0
    tell nothing. Later ones are not looked at, as the end of a schedule may be the same for all groups.

    Attributes:
        decided: whether it has looked at a step that tells.

    Args:
        owner: the optimizer, for the warning.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._given: list[float] = []  # different ones, in the order of the groups
        self.decided = False

    def begin(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Forget all other groups, and take these for those that were made."""
        self._given, self.decided = [], False
        for group in groups:
            self.add(group["lr"])

    def add(self, lr: Any) -> None:
        """Remember with which learning rate a group was made. Tensors are not read."""
        if isinstance(lr, int | float) and lr not in self._given:
            self._given.append(lr)

    def look(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Look at the learning rates of a step, and warn once if all are one number."""
        rates = [group["lr"] for group in groups]
        are_numbers = all(isinstance(rate, int | float) for rate in rates)
        if not rates or (are_numbers and rates[0] == 0):
            return
        self.decided = True
        if are_numbers and len(self._given) > 1 and all(rate == rates[0] for rate in rates):
            were = ", ".join(f"{rate:g}" for rate in self._given)
            warnings.warn(
                f"{self._owner}: all param groups have the learning rate {rates[0]:g} now, but were made with {were}; "
                "embeddings, heads and norms have another one than matrices. Keep what each group had, and multiply it "
                "by a factor; give OneCycleLR and CyclicLR a list with one number for each group",
                stacklevel=9,
            )
