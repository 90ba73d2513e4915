"""What parameters were in the last step: whether their state still fits what they are now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms import Entry
from orthon.sharding import local
from orthon.step.member import Member


@dataclass
class History:
    """The parameters of the last step, by name, with their dtypes.

    A parameter that lies otherwise, has another dtype, or is gone would make a step fail in the middle, or lose its
    state without a word. So this is looked at before a step for which a new plan is made.

    Attributes:
        owner: the optimizer, for errors.
    """

    owner: str
    _params: dict[str, tuple[Tensor, torch.dtype]] = field(default_factory=dict, init=False)

    def remember(self, members: Sequence[Member]) -> None:
        """Take over what the parameters are in a step that has been made."""
        self._params = {member.name: (member.param, member.dtype) for member in members}

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
            ValueError: for a parameter that cannot be changed.
        """
        self._check_gone(members, groups, states)
        before = {id(param): dtype for param, dtype in self._params.values()}
        on_meta = {member.param.is_meta for member in members if member.grad is not None}
        for member in members:
            where = f"{self.owner}: parameter {member.name!r}"
            if member.grad is not None and local(member.param).is_inference():
                raise ValueError(f"{where}: was made in inference mode, so that it cannot be trained; make it outside")
            if member.param.is_meta and len(on_meta) > 1:
                raise ValueError(f"{where}: lies on meta, so that it has no numbers, while other parameters have some")
            state = states.get(member.param)
            if state:
                _check_fit(member, state, before.get(id(member.param), member.dtype), where)

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
