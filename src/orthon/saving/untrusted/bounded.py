"""Whether a nested value is small enough to be walked, compared and shown, also where it shares its parts."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orthon.saving.untrusted.errors import RefusedError

DEPTH = 64  # containers in each other
NODES = 10_000_000
_LEAVES = {str, int, float, bool, type(None)}  # the usual ones, known at a glance


def plain_children(value: Any) -> Iterable[Any]:
    """Return what is in a container of Python; nothing of any other value."""
    if isinstance(value, Mapping):
        return (part for item in value.items() for part in item)
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def check_bounded(
    value: Any,
    *,
    children: Callable[[Any], Iterable[Any]] = plain_children,
    nodes: int = NODES,
) -> None:
    """Raise an error for a value that is too deep, too large, or contains itself.

    A part that lies in several places counts in each of them, as whoever walks through the value would see it. So
    twenty lists, each of which has the next one ten times, are large. The walk itself sees each part once.

    Args:
        value: to look at.
        children: what is in a value. A value without children is a leaf.
        nodes: how many values there may be.

    Raises:
        RefusedError: it is.
    """
    known: dict[int, tuple[int, int]] = {}  # of what has been seen to its end
    within: set[int] = set()

    def measure(whole: Any, room: int) -> tuple[int, int]:
        """Return how many values there are in a container, itself counted, and on how many levels below it."""
        if found := known.get(id(whole)):
            return found
        if id(whole) in within:
            raise RefusedError("it has a list or dict that contains itself")
        within.add(id(whole))
        size, levels = 1, 0
        for child in children(whole):
            below = (1, 0) if type(child) in _LEAVES else measure(child, room - 1) if room else (1, DEPTH)
            size, levels = size + below[0], max(levels, below[1] + 1)
            if levels > DEPTH:
                raise RefusedError(f"it has more than {DEPTH} lists or dicts in each other")
            if size > nodes:
                raise RefusedError(f"it has more than {nodes} values, counting shared ones each time")
        within.discard(id(whole))
        known[id(whole)] = size, levels
        return size, levels

    measure(value, DEPTH)
