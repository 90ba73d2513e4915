"""The options of param groups: filled in, checked, and followed where schedulers change them."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from orthon.algorithms import RULES, Rule
from orthon.algorithms.names import check_keys
from orthon.algorithms.options import plain_number
from orthon.sharding.matrix_view import MatrixView
from orthon.step.capture import check_options

Options = MutableMapping[str, Any]


@dataclass(frozen=True)
class OptionCheck:
    """What an optimizer knows about the options of its groups.

    Attributes:
        owner: the optimizer, for errors.
        given: values for the groups that do not set them, each where the group's rule has it.
        nonfinite: of the optimizer.
    """

    owner: str
    given: Mapping[str, Any]
    nonfinite: str

    def label(self, group: Mapping[str, Any], index: int) -> str:
        """Return how errors call a group."""
        return f"{self.owner}: param group {group.get('name', index)!r}"

    def complete(self, group: Options, index: int, *, by_schedule: bool) -> Rule:
        """Fill in the options that a group lacks, check all of them, and return the group's rule.

        Args:
            group: the group. Numbers of any kind become Python's own in it.
            index: its position.
            by_schedule: whether schedulers have been at work on the group, whose rounding and whose keys are taken.

        Raises:
            TypeError, ValueError: for an option that cannot be used.
        """
        where = self.label(group, index)
        rule = rule_of(group.setdefault("algorithm", self.given.get("algorithm")), where)
        if by_schedule:
            follow_momentum(group, rule)
        check_keys(group, rule, where, by_schedule=by_schedule)
        for name, option in rule.options.items():
            value = group.setdefault(name, self.given.get(name, option.default))
            group[name] = option.check(name, value, where, by_schedule=by_schedule)
        check_options(group, self.nonfinite, where)
        if group.get("view") is not None:
            group["view"] = view_of(group["view"], where)
        return rule


def rule_of(algorithm: object, where: str) -> Rule:
    """Return the rule of this name, or raise a ValueError that `where` starts."""
    if not isinstance(algorithm, str) or algorithm not in RULES:
        allowed = ", ".join(map(repr, sorted(RULES)))
        raise ValueError(f"{where}: algorithm should be one of {allowed}, but is {algorithm!r}")
    return RULES[algorithm]


def follow_momentum(group: Options, rule: Rule | None) -> None:
    """Take the momentum that a scheduler has set for the first beta, where the rule has betas and no momentum.

    OneCycleLR and CyclicLR set one of the two in all groups. They set "momentum" in those of Orthon's optimizers.
    """
    if rule is not None and "momentum" in group and "betas" in rule.options and "momentum" not in rule.options:
        _, second = group.get("betas", rule.options["betas"].default)
        group["betas"] = group.pop("momentum"), second


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
