"""Momentum that schedulers cycle where the rule has betas: which of the two counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orthon.algorithms import RULES
from orthon.algorithms.options import MutableGroup


@dataclass(frozen=True)
class Seen:
    """What a group had when a step last looked at it.

    Attributes:
        group: the group.
        momentum: its "momentum", None if it had none.
        most: its "max_momentum", which such a scheduler puts there; None if it had none.
        beta: the first of its "betas", None if it had none.
    """

    group: MutableGroup
    momentum: Any
    most: Any
    beta: Any

    @classmethod
    def of(cls, group: MutableGroup) -> "Seen":
        """Return what a group has now."""
        return cls(group, group.get("momentum"), group.get("max_momentum"), _first_beta(group))


@dataclass
class Cycled:
    """What the groups of an optimizer had when a step last looked at them. So it is known what has changed since."""

    _seen: dict[int, Seen] = field(default_factory=dict)

    def begin(self, groups: Sequence[MutableGroup]) -> None:
        """Forget all other groups, and look at these."""
        self._seen = {index: Seen.of(group) for index, group in enumerate(groups)}

    def look(self, group: MutableGroup, index: int) -> None:
        """Remember what a group has now."""
        self._seen[index] = Seen.of(group)

    def of(self, group: MutableGroup, index: int) -> Seen | None:
        """Return what a group had; None if no step and no constructor has looked at it."""
        seen = self._seen.get(index)
        return seen if seen is not None and seen.group is group else None

    def follow(self, group: MutableGroup, index: int) -> None:
        """Take the momentum that has been set for the first beta, as `follow_momentum` does, and look again."""
        if follow_momentum(group, self.of(group, index)):
            self.look(group, index)


def follow_momentum(group: MutableGroup, seen: Seen | None = None) -> bool:
    """Take the momentum that a scheduler has set for the first beta, where there are betas.

    OneCycleLR and CyclicLR set one of the two in all groups. They set "momentum" in those of Orthon's optimizers. It
    gives way to a first beta that is another one than in the last step: no scheduler changes that, so a person has.

    Args:
        group: a param group, with its algorithm.
        seen: what it had when a step last looked at it; None if that is not known.

    Returns:
        whether there was something to take.
    """
    algorithm = group.get("algorithm")
    rule = RULES.get(algorithm) if isinstance(algorithm, str) else None
    if rule is None or "momentum" not in group:
        return False
    beta_changed = seen is not None and _first_beta(group) != seen.beta
    if "momentum" not in rule.options and "betas" in rule.options:
        momentum = group.pop("momentum")
        if not beta_changed:
            group["betas"] = momentum, group.get("betas", rule.options["betas"].default)[1]
        return True
    # A rule with momentum, beside one with betas for what is no matrix, under such a scheduler.
    momentum = group["momentum"]
    if "others" not in group or "max_momentum" not in group or _first_beta(group) in (None, momentum):
        return False
    if beta_changed or (seen is not None and (momentum, group["max_momentum"]) == (seen.momentum, seen.most)):
        return False
    group["betas"] = momentum, group["betas"][1]
    return True


def _first_beta(group: MutableGroup) -> Any:
    """Return the first of the betas; None if there are none, or they are of a wrong kind, which `check` tells."""
    betas = group.get("betas")
    return betas[0] if isinstance(betas, tuple | list) and len(betas) == 2 else None
