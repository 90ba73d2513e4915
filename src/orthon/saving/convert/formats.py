"""How other packages keep the state of an optimizer: which of their names means what, as values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orthon.saving.shown import shown


@dataclass(frozen=True)
class Key:
    """What a key of another package's param group means.

    Attributes:
        option: the option of orthon that takes its value. None for a key that does not change the update, which is
            dropped.
        values: their value → the option's value. None if these are the same.
        allowed: whether a value means something that orthon can do.
        reason: why other values are refused. Completes "which ...".
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
            ValueError: if orthon has no value with this meaning. `where` names the key.
        """
        try:
            if self.allowed(value):
                return value if self.values is None else self.values[value]
        except (
            TypeError,
            KeyError,
            ValueError,
            RuntimeError,
        ):  # a value of another type, or one that has no counterpart
            pass
        raise ValueError(f"{where} is {shown(value)}, which {self.reason}")


@dataclass(frozen=True)
class Format:
    """How a package keeps what one of orthon's algorithms needs.

    Attributes:
        algorithm: orthon's name of the algorithm.
        entries: of a parameter's state: their name → orthon's name.
        keys: of a param group: their name → its meaning.
        options: options of orthon that describe what their update always does.
        notes: in what the updates differ.
    """

    algorithm: str
    entries: Mapping[str, str]
    keys: Mapping[str, Key]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class NewGroup:
    """Parameters of one of their param groups that become a param group of orthon's.

    Attributes:
        format: the name of its format in the source.
        group: their param group, without "params".
        states: position in their group → the parameter's state, empty if it has none.
        options: options of orthon that follow from the states.
        notes: what is assumed because neither the group nor the states tell it.
    """

    format: str
    group: Mapping[str, Any]
    states: Mapping[int, Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


States = Sequence[Mapping[str, Any]]
Split = Callable[[Mapping[str, Any], States], list[NewGroup]]


@dataclass(frozen=True)
class Source:
    """A package whose optimizer states can be converted.

    Attributes:
        formats: their formats, by the names that `split` uses.
        split: from a param group and the states of its parameters, makes the groups that these become. It raises a
            ValueError for a group that it cannot split.
    """

    formats: Mapping[str, Format]
    split: Split


def whole(format: str) -> Split:
    """Return the `split` of a source whose groups all have the same format, and stay whole."""
    return lambda group, states: [NewGroup(format, group, dict(enumerate(states)))]


def same(option: str) -> Key:
    """Return a key that every group has, and whose value means the same as that of the option."""
    return Key(option, required=True)


def refused(reason: str) -> Key:
    """Return a key that is refused, because orthon has no counterpart."""
    return Key(allowed=lambda _: False, reason=reason)


# What keeps their divisions from dividing by zero. Orthon divides by the norms themselves, and treats zero apart.
NORM_EPS = Key(
    allowed=lambda eps: eps <= 1e-6,
    reason="damps updates of gradients that are small; orthon's have no such scale (allowed: at most 1e-6)",
)
NO_EFFECT = Key()
