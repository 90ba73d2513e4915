"""What parameters were in the last step: whether their state still fits what they are now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms import Entry
from orthon.algorithms.state import Entries
from orthon.sharding import local
from orthon.step.member import Member

# The side, the width and the dtype of each tensor that is kept of a stack of matrices.
_Kept = dict[str, tuple[int | None, int, torch.dtype | None]]


@dataclass
class History:
    """The parameters of the last step, by name, with their dtypes and what was kept of them.

    A parameter that lies otherwise, has another dtype, is gone, or of which something else is to be kept would make a
    step fail in the middle, or lose its state without a word. So this is looked at before a step for which a new plan
    is made.

    Attributes:
        owner: the optimizer, for errors.
    """

    owner: str
    _params: dict[str, tuple[Tensor, torch.dtype]] = field(default_factory=dict, init=False)
    _kept: dict[str, list[_Kept]] = field(default_factory=dict, init=False)

    def remember(self, members: Sequence[Member]) -> None:
        """Take over what the parameters are in a step that has been made."""
        self._params = {member.name: (member.param, member.dtype) for member in members}
        self._kept = {member.name: _kept(member.entries.values()) for member in members}

    def check_names(self, names: Sequence[str], group: Mapping[str, Any], index: int) -> None:
        """Raise a ValueError if a group, in this place, has more or fewer names than parameters."""
        params = group["params"]
        if len(names) == len(params):
            return
        here = {id(param) for param in params}
        gone = [name for name in names if name in self._params and id(self._params[name][0]) not in here]
        which = f"; parameter {gone[0]!r} has been taken out of it" if gone else ""
        raise ValueError(
            f"{self.owner}: param group {group.get('name', index)!r}: 'param_names' should have a name for each of its "
            f"{len(params)} parameters, but has {len(names)}{which}"
        )

    def check(
        self,
        members: Sequence[Member],
        groups: Sequence[Mapping[str, Any]],
        states: Mapping[Tensor, Mapping[str, Any]],
    ) -> None:
        """Raise an error that names the parameter, if one has changed so that its state does not fit.

        Args:
            members: the parameters as they are now.
            groups: the param groups.
            states: of all parameters.

        Raises:
            RuntimeError: for a parameter that is gone, or has changed since its state was made.
            ValueError: for a parameter that cannot be changed, or whose options ask for another state.
        """
        self._check_gone(members, groups, states)
        before = {id(param): dtype for param, dtype in self._params.values()}
        for member in members:
            where = f"{self.owner}: parameter {member.name!r}"
            if member.grad is not None and local(member.param).is_inference():
                raise ValueError(f"{where}: was made in inference mode, so that it cannot be trained; make it outside")
            state = states.get(member.param)
            if state:
                _check_fit(member, state, before.get(id(member.param), member.dtype), where)
                _check_kept(member, self._kept.get(member.name), where)

    def _check_gone(
        self,
        members: Sequence[Member],
        groups: Sequence[Mapping[str, Any]],
        states: Mapping[Tensor, Mapping[str, Any]],
    ) -> None:
        here = {id(param) for group in groups for param in group["params"]}
        now = {member.name: member.param for member in members}
        for name, (param, _) in self._params.items():
            if (now.get(name, param) is param and id(param) in here) or not states.get(param):
                continue
            where = f"{self.owner}: parameter {name!r}"
            if id(param) not in here and len(here) < len(self._params):
                raise RuntimeError(
                    f"{where}: has been taken out of its param group, but has state; delete that, too, by "
                    "del optimizer.state[parameter], or leave it in and let it have no gradient"
                )
            raise RuntimeError(
                f"{where}: has taken the place of another one that has state; "
                "give the optimizer the parameters that are trained before its first step, or load a state_dict"
            )


def _check_fit(member: Member, state: Mapping[str, Any], before: torch.dtype, where: str) -> None:
    """Raise a RuntimeError if a parameter has changed since its state was made."""
    again = "; move or cast it before the optimizer is made, or load the state_dict() from before the change"
    for of_stack in member.entries.values():
        for key, entry in of_stack.items():
            if not isinstance(entry, Entry) or entry.side is not None or key not in state:
                continue
            kept, now = local(state[key]), local(member.param)
            if state[key].shape != member.param.shape:
                raise RuntimeError(
                    f"{where}: has the shape {tuple(member.param.shape)} now, but its state {key!r} has "
                    f"{tuple(state[key].shape)}{again}"
                )
            if kept.device != now.device:
                raise RuntimeError(f"{where}: lies on {now.device} now, but its state {key!r} on {kept.device}{again}")
            if now.dtype != before and kept.dtype == before:
                raise RuntimeError(f"{where}: has the dtype {now.dtype} now, but had {before} in the last step{again}")


def _kept(entries: Iterable[Entries]) -> list[_Kept]:
    """Return what decides about the shapes and dtypes of a state."""
    return [
        {key: (entry.side, entry.width, entry.dtype) for key, entry in of_stack.items() if isinstance(entry, Entry)}
        for of_stack in entries
    ]


def _check_kept(member: Member, before: Sequence[_Kept] | None, where: str) -> None:
    """Raise a ValueError if other tensors are to be kept of a parameter than in the last step."""
    now = _kept(member.entries.values())
    if before is None or len(before) != len(now):
        return
    for old, new in zip(before, now, strict=True):
        for key in old.keys() | new.keys():
            if key not in old or key not in new:
                change = "be in its state" if key in new else "not be in its state"
                raise ValueError(
                    f"{where}: {key} should {change} by the options of its group; what is kept of a parameter cannot "
                    "change once there is state"
                )
            if old[key][:2] != new[key][:2]:
                raise ValueError(
                    f"{where}: {key} should be {_shape(*new[key])} by the options of its group, but is "
                    f"{_shape(*old[key])}; its rank and side cannot change once there is state"
                )
            if old[key] != new[key]:  # a saved state would not load, as its dtype would not be that of its options
                own = "the parameter's"
                raise ValueError(
                    f"{where}: dtype of {key} should be {new[key][2] or own} by the options of its "
                    f"group, but is {old[key][2] or own}; it cannot change once there is state"
                )


def _shape(side: int | None, width: int, _: torch.dtype | None) -> str:
    """Return in words how large a tensor is that lies along one side of the matrices."""
    return "one for each entry" if side is None else f"({('rows', 'columns')[side]}, {width})"
