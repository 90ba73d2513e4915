"""A param group as it was when the last step looked at it: what has changed since is checked, and nothing else."""

from collections.abc import Callable, Iterable, Sequence
from operator import is_, itemgetter
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
        self._where = check.label(group, index)
        self._params = list(group["params"])
        self._size = len(group)
        self._options = options_of(group)
        self._names = [name for name in ("algorithm", "others") if name in group] + list(self._options)
        self._get = itemgetter(*self._names)
        self._look()

    def is_valid(self, group: dict[str, Any], layouts: Layouts) -> bool:
        """Return whether the members can be used again, after checking what a scheduler has changed.

        Raises:
            TypeError, ValueError: for a value of a scheduler that is not allowed.
        """
        if self.group is not group or len(self._params) != len(group["params"]):
            return False
        if "betas" in self._options and "momentum" in group:
            follow_momentum(group)
        try:
            now = self._get(group)
        except KeyError:  # an option has been taken away
            return False
        if (self._may_change or not all(map(is_, self._values, now))) and not self._takes(now):
            return False
        if len(group) != self._size:
            return False
        for old, new in zip(self._params, group["params"], strict=True):
            if old is not new:
                return False
        for member in self.members:
            if _lies_as_before(member):
                continue
            if member.param.dtype != member.dtype or layouts.of(member.param) is not member.layout:
                return False
        return True

    def _takes(self, values: Sequence[Any]) -> bool:
        """Return whether all that has changed are values of a scheduler, after checking these."""
        for name, value, now in zip(self._names, self._values, values, strict=True):
            option = self._options.get(name)
            if option is None or not option.scheduled:
                if type(now) is not type(value) or now != value:
                    return False
            elif now is not value or (isinstance(now, Tensor) and is_readable(now)):  # which may change in place
                self.group[name] = option.check(name, now, self._where, by_schedule=True)
        self._look()
        return True

    def _look(self) -> None:
        """Remember the values that there are now."""
        self._values = self._get(self.group)
        self._may_change = any(isinstance(value, Tensor) for value in self._values)


def _lies_as_before(member: Member) -> bool:
    """Return whether a parameter surely lies as its layout says. That is quick, and may miss some that do."""
    param: Any = member.param
    if type(param) is not member.type or param.dtype != member.dtype or param.device != member.layout.device:
        return False
    return bool(param.shape == member.layout.shape if member.spec is None else param._spec is member.spec)
