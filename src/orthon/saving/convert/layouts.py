"""How a package keeps the state of an optimizer, as values: which of its names means what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Key:
    """What a key of a param group means.

    Attributes:
        option: of orthon, which takes its value; None for a key without effect on the update, which is dropped.
        values: the option's value for each of theirs; None if they are the same.
        allowed: whether a value has the meaning that orthon gives it.
        reason: why other values are refused; completes "which ...".
        required: whether every group has it.
    """

    option: str | None = None
    values: Mapping[Any, Any] | None = None
    allowed: Callable[[Any], bool] = lambda _: True
    reason: str = ""
    required: bool = False

    def read(self, value: Any, where: str) -> Any:
        """Return the value of the option.

        Raises:
            ValueError: if orthon has no value of this meaning; `where` names the key.
        """
        try:
            if self.allowed(value):
                return value if self.values is None else self.values[value]
        except (TypeError, KeyError):  # a value of another kind than theirs, or one that orthon has no name for
            pass
        raise ValueError(f"{where} is {value!r}, which {self.reason}")


@dataclass(frozen=True)
class Layout:
    """How a package keeps what one of orthon's algorithms needs.

    Attributes:
        algorithm: orthon's name of it.
        entries: of the state of a parameter: their names, and orthon's.
        keys: of a param group.
        options: of orthon, which say what their update always does.
        notes: where the two agree up to something.
        refuses: why a matrix of the given shape has no counterpart; None if it has one.
    """

    algorithm: str
    entries: Mapping[str, str]
    keys: Mapping[str, Key]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    refuses: Callable[[tuple[int, ...]], str | None] = lambda _: None


@dataclass(frozen=True)
class Part:
    """Parameters of one of their groups that become a group of orthon's.

    Attributes:
        layout: the name of their layout among those of the source.
        group: their options, without "params".
        states: of the parameters, by position in their group; empty for one without.
        options: of orthon, which follow from the states.
        notes: what is not in the group or in the states, and is taken for granted.
    """

    layout: str
    group: Mapping[str, Any]
    states: Mapping[int, Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


States = Sequence[Mapping[str, Any]]
Parts = Callable[[Mapping[str, Any], States], list[Part]]


@dataclass(frozen=True)
class Source:
    """A package's layout of states.

    Attributes:
        origin: the optimizers whose state_dict() has it.
        layouts: by the name under which `parts` refers to them.
        parts: tells which parameters of a group have which layout, from the group and the state of each of its
            parameters. It raises a ValueError for a group that it cannot take apart.
    """

    origin: str
    layouts: Mapping[str, Layout]
    parts: Parts


def whole(layout: str) -> Parts:
    """Return the parts of a source whose groups have one layout each, always the same."""
    return lambda group, states: [Part(layout, group, dict(enumerate(states)))]


def same(option: str) -> Key:
    """Return a key that every group has, and whose values orthon gives the same meaning."""
    return Key(option, required=True)


def refused(reason: str) -> Key:
    """Return a key that belongs to a variant without counterpart."""
    return Key(allowed=lambda _: False, reason=reason)


# What keeps theirs from dividing by zero: orthon divides by norms as they are, and treats zero apart.
NORM_EPS = Key(
    allowed=lambda eps: eps <= 1e-6,
    reason="damps updates of gradients that are small; orthon's have no such scale (allowed: at most 1e-6)",
)
NO_EFFECT = Key()
