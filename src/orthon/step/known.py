"""A param group as it was when the last step looked at it: what has changed since is checked, and nothing else."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from orthon.algorithms.rule import options_of
from orthon.linalg.device import is_readable
from orthon.sharding import Layouts
from orthon.step.member import Member
from orthon.step.options import OptionCheck, follow_momentum


class KnownGroup:
    """A param group, its parameters, and the values of its options.

    Args:
        group: the group, with all options.
        index: its position.
        check: of its options.
        made: returns its members.

    Raises:
        TypeError, ValueError, NotImplementedError: for an option or a parameter that cannot be used.
    """

    def __init__(
        self, group: dict[str, Any], index: int, check: OptionCheck, made: Callable[[], Iterable[Member]]
    ) -> None:
        self.group = group
        check.complete(group, index, by_schedule=True)
        self.members = list(made())
        self._params = list(group["params"])
        self._size = len(group)
        self._options = options_of(group)
        chosen = [name for name in ("algorithm", "others") if name in group]
        fixed = [name for name, option in self._options.items() if not option.scheduled]
        self._fixed = [(name, group[name]) for name in [*chosen, *fixed]]
        self._seen = {name: group[name] for name, option in self._options.items() if option.scheduled}

    def is_valid(self, group: dict[str, Any], index: int, check: OptionCheck, layouts: Layouts) -> bool:
        """Return whether the members can be used again, after checking what a scheduler has changed.

        Raises:
            TypeError, ValueError: for a value of a scheduler that is not allowed.
        """
        if self.group is not group or len(self._params) != len(group["params"]):
            return False
        for name, value in self._fixed:
            now = group.get(name, self)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        if "betas" in self._options and "momentum" in group:
            follow_momentum(group)
        for name, value in self._seen.items():
            now = group.get(name, self)
            if now is not value or (isinstance(now, Tensor) and is_readable(now)):  # a tensor may change in place
                if now is self:
                    return False
                self._check_scheduled(name, now, index, check)
        if len(group) != self._size:
            return False
        for old, new in zip(self._params, group["params"], strict=True):
            if old is not new:
                return False
        for member in self.members:
            if not _lies_as_before(member) and layouts.of(member.param) is not member.layout:
                return False
        return True

    def _check_scheduled(self, name: str, value: Any, index: int, check: OptionCheck) -> None:
        where = check.label(self.group, index)
        self.group[name] = self._seen[name] = self._options[name].check(name, value, where, by_schedule=True)


def _lies_as_before(member: Member) -> bool:
    """Return whether a parameter surely lies as its layout says. That is quick, and may miss some that do."""
    param: Any = member.param
    if type(param) is not member.type or param.device != member.layout.device:
        return False
    return bool(param.shape == member.layout.shape if member.spec is None else param._spec is member.spec)
