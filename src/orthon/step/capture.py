"""CUDA graphs of whole steps: what must hold where one is captured.

A graph repeats what the device does, on the same memory. What the host decides or computes is left as it was at the
capture, so that an error there is better than a step that goes on with old numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from orthon.algorithms.options import Group
from orthon.sharding import local
from orthon.step.member import Member


def check_options(group: Group, nonfinite: str, where: str) -> None:
    """Raise a ValueError if a group is to be capturable, but its options make the host wait for the device."""
    if not group["capturable"]:
        return
    if nonfinite == "raise":
        raise ValueError(
            f"{where}: capturable should be False with nonfinite='raise', which asks the device in every step; "
            "nonfinite='skip' decides there"
        )
    if group.get("polar") == "svd":
        raise ValueError(
            f"{where}: capturable should be False with polar='svd', which torch does not compute without waiting for "
            "the device; 'polar_express' and 'newton_schulz' are capturable"
        )


def check_ranks(members: Sequence[Member], owner: str) -> None:
    """Raise a ValueError if a parameter of a capturable group is updated by several ranks together."""
    for member in members:
        if member.group["capturable"] and member.layout.everyone.size > 1:
            raise ValueError(
                f"{owner}: parameter {member.name!r}: capturable should be False where several ranks update a "
                f"parameter together, here {member.layout.everyone.ranks}; a step is captured in one process alone"
            )


class Capture:
    """A step that is being captured.

    Args:
        groups: of the optimizer.
        nonfinite: its own.
        members: its parameters.
        states: of the parameters.
        warm: whether there has been a step before.
        owner: the optimizer, for errors.

    Raises:
        RuntimeError: if a group is not capturable, or there has been no step like this one.
        ValueError: for options that a graph would not follow.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        nonfinite: str,
        members: Sequence[Member],
        states: Mapping[Tensor, Mapping[str, Any]],
        *,
        warm: bool,
        owner: str,
    ) -> None:
        self._members, self._states, self._owner = members, states, owner
        for index, group in enumerate(groups):
            where = f"{owner}: param group {group.get('name', index)!r}"
            if not group["capturable"]:
                raise RuntimeError(f"{where}: step() is captured into a CUDA graph, but capturable is False")
            check_options(group, nonfinite, where)
            _check_rates(group, where)
        for member in members:
            if member.grad is not None and not (warm and states.get(member.param)):
                raise RuntimeError(
                    f"{owner}: parameter {member.name!r}: has no state yet, which a CUDA graph would make anew in each "
                    "replay; take a step like the captured one before, on a side stream"
                )
        self._places = self._places_now()

    def check_state(self) -> None:
        """Raise a RuntimeError if the step has moved its state, which each replay would bring back from there."""
        if self._places_now() != self._places:
            raise RuntimeError(
                f"{self._owner}: the state has moved during the capture, as after loading, or where other parameters "
                "have gradients than before; take a step like the captured one before, on a side stream"
            )

    def _places_now(self) -> list[int]:
        state = [self._states[member.param] for member in self._members if member.grad is not None]
        return [local(value).data_ptr() for entries in state for value in entries.values()]


def _check_rates(group: Group, where: str) -> None:
    """Raise a ValueError for a rate that is to change, but that a graph would keep as it is now."""
    if not group["params"]:
        return
    device = group["params"][0].device
    for name in ("lr", "weight_decay"):
        value = group[name]
        if isinstance(value, Tensor) and value.device != device:
            raise ValueError(
                f"{where}: {name} should be a tensor on {device}, or a number if it never changes, but is a tensor on "
                f"{value.device}"
            )
    if "initial_lr" in group and not isinstance(group["lr"], Tensor):
        raise ValueError(
            f"{where}: lr should be a tensor on {device}, as a scheduler changes it, and a CUDA graph keeps a number, "
            f"but is {group['lr']!r}"
        )
