"""The options of param groups: filled in, checked, and followed where schedulers change them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orthon.algorithms import RULES, Rule
from orthon.algorithms.names import check_keys
from orthon.algorithms.options import MutableGroup, plain_number
from orthon.algorithms.rule import options_of
from orthon.sharding.matrix_view import MatrixView
from orthon.step.capture import check_options
from orthon.step.cycled import Cycled
from orthon.step.rates import Rates


@dataclass(frozen=True)
class OptionCheck:
    """What an optimizer knows about the options of its groups.

    Attributes:
        owner: the optimizer, for errors.
        given: values for the groups that do not set them, each where the group's rule has it.
        nonfinite: of the optimizer when it was made.
        others: the algorithm for what is no matrix in groups that name no algorithm; None if there is none.
        cycled: what the groups had when a step last looked at them, where schedulers cycle it.
        rates: the learning rates with which the groups were made.
    """

    owner: str
    given: Mapping[str, Any]
    nonfinite: str
    others: str | None = None
    cycled: Cycled = field(default_factory=Cycled, init=False)
    rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", Rates(self.owner))

    def begin(self, groups: Sequence[MutableGroup]) -> None:
        """Take these groups, which a state has made, for those that the optimizer was made with."""
        self.cycled.begin(groups)
        self.rates.begin(groups)

    def label(self, group: Mapping[str, Any], index: int) -> str:
        """Return how errors call a group."""
        return f"{self.owner}: param group {group.get('name', index)!r}"

    def complete(self, group: MutableGroup, index: int, *, by_schedule: bool) -> None:
        """Fill in the options that a group lacks, and check all of them.

        Args:
            group: the group. Numbers of any kind become Python's own in it.
            index: its position.
            by_schedule: whether schedulers have been at work on the group, whose rounding and whose keys are taken.

        Raises:
            TypeError, ValueError: for an option that cannot be used.
        """
        where = self.label(group, index)
        if "algorithm" not in group:
            group["algorithm"] = self.given["algorithm"]
            if self.others is not None:
                group.setdefault("others", self.others)
        rule = rule_of(group["algorithm"], where)
        if group.get("others") is not None:
            rule_of_others(group["others"], where)
        if by_schedule:
            self.cycled.follow(group, index)
        check_keys(group, where, by_schedule=by_schedule)
        for name, option in options_of(group).items():
            value = group.setdefault(name, self.given.get(name, option.default))
            group[name] = option.check(name, value, where, by_schedule=by_schedule)
        rule.work.check_options(group, where)
        if not by_schedule:
            check_options(group, self.nonfinite, where)  # later, a capture looks at them
            self.rates.add(group["lr"])
        if group.get("view") is not None:
            group["view"] = view_of(group["view"], where)
        self.cycled.look(group, index)


def rule_of(algorithm: object, where: str) -> Rule:
    """Return the rule of this name, or raise a ValueError that `where` starts."""
    if not isinstance(algorithm, str) or algorithm not in RULES:
        allowed = ", ".join(map(repr, sorted(RULES)))
        raise ValueError(f"{where}: algorithm should be one of {allowed}, but is {algorithm!r}")
    return RULES[algorithm]


def rule_of_others(algorithm: object, where: str) -> Rule:
    """Return the rule for parameters that are no matrices, or raise a ValueError that `where` starts."""
    rule = RULES.get(algorithm) if isinstance(algorithm, str) else None
    if rule is None or rule.work.takes_matrices:
        allowed = ", ".join(repr(name) for name in sorted(RULES) if not RULES[name].work.takes_matrices)
        raise ValueError(f"{where}: others should be None or one of {allowed}, but is {algorithm!r}")
    return rule


def view_of(value: MatrixView | Mapping[str, Any], where: str, called: str = "view") -> MatrixView:
    """Return a view that is perhaps given by its attributes; errors say where, and what it is `called`."""
    try:
        return MatrixView.of(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {called}: {error}") from error


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as values that JSON has."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, MatrixView):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    number = plain_number(value)
    return number if isinstance(number, int | float) else str(value).removeprefix("torch.")
