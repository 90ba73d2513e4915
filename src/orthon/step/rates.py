"""Groups that were made with several learning rates, and get one for all of them from a loop or a scheduler."""

from collections.abc import Mapping, Sequence
from typing import Any

from orthon.step.words import warn

# By how much more than rounding a learning rate must have grown.
_MORE = 1 + 1e-6


class Rates:
    """Notices whether several learning rates have become one.

    Loops with `for group in optimizer.param_groups: group["lr"] = lr` do so, and `OneCycleLR(optimizer, max_lr=0.02)`.
    Embeddings are then trained with the learning rate of matrices, without an error. Steps with a learning rate of 0
    tell nothing. The end of a schedule may be the same for all groups. So once the learning rates have moved, one
    number for all that is below each of them tells nothing either.

    Attributes:
        watching: whether there is something to look at: several learning rates, and no warning yet.

    Args:
        owner: the optimizer, for the warning.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._given: list[float] = []  # different ones, in the order of the groups
        self._last: list[float] = []  # of the last step that tells
        self.watching = False

    def begin(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Forget all other groups, and take these for those that were made."""
        self._given, self._last, self.watching = [], [], False
        for group in groups:
            self.add(group["lr"])

    def add(self, lr: Any) -> None:
        """Remember with which learning rate a group was made. Tensors are not read."""
        if isinstance(lr, int | float) and lr not in self._given:
            self._given.append(lr)
            self.watching |= len(self._given) == 2

    def look(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Look at the learning rates of a step, and warn once if they have become one number."""
        rates = [group["lr"] for group in groups]
        for rate in rates:
            if not isinstance(rate, int | float):  # a tensor, which is not read
                return
        if rates == self._last or not any(rates):
            return
        last, self._last = self._last, rates
        if any(rate != rates[0] for rate in rates):
            return
        have_moved = not all(rate in self._given for rate in last)
        if have_moved and rates[0] <= _MORE * min(rate for rate in last if rate):
            return
        self.watching = False
        were = ", ".join(f"{rate:g}" for rate in self._given)
        warn(
            f"{self._owner}: all param groups have the learning rate {rates[0]:g} now, but were made with {were}; "
            "embeddings, heads and norms have another one than matrices. Keep what each group had, and multiply it "
            "by a factor; give OneCycleLR and CyclicLR a list with one number for each group"
        )
