"""Whether a nested value is small enough to be walked, compared and shown, also where it shares its parts."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orthon.saving.untrusted.errors import RefusedError

DEPTH = 64
NODES = 10_000_000


def plain_children(value: Any) -> Iterable[Any]:
    """Return what is in a container of Python; nothing of any other value."""
    if isinstance(value, Mapping):
        return (part for item in value.items() for part in item)
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def check_bounded(
    value: Any,
    *,
    children: Callable[[Any], Iterable[Any]] = plain_children,
    depth: int = DEPTH,
    nodes: int = NODES,
) -> None:
    """Raise an error for a value that is too deep, too large, or contains itself.

    A part that lies in several places counts in each of them, as whoever walks through the value would see it. So
    twenty lists, each of which has the next one ten times, are large. The walk itself sees each part once.

    Args:
        value: to look at.
        children: what is in a value. A value without children is a leaf.
        depth: how many containers may lie in each other.
        nodes: how many values there may be.

    Raises:
        RefusedError: it is.
    """
    known: dict[int, tuple[int, int]] = {}  # what has been seen to its end: number of values, and of levels
    within: set[int] = {id(value)}
    walk = [_Walked(value, children)]
    while walk:
        last = walk[-1]
        for child in last.rest:
            size, levels = known.get(id(child), (0, 0))
            if not size and isinstance(child, str | int | float | bool | None):
                size, levels = 1, 0
            if not size:
                if id(child) in within:
                    raise RefusedError("it has a list or dict that contains itself")
                within.add(id(child))
                walk.append(_Walked(child, children))
                break
            last.add(size, levels)
        else:
            walk.pop()
            within.discard(id(last.value))
            if last.size > 1:
                known[id(last.value)] = last.size, last.levels
            if walk:
                walk[-1].add(last.size, last.levels)
        if len(walk) > depth + 1 or last.levels > depth:
            raise RefusedError(f"it has more than {depth} lists or dicts in each other")
        if last.size > nodes:
            raise RefusedError(f"it has more than {nodes} values, counting shared ones each time")


class _Walked:
    """A container on the way from the value to where the walk is."""

    def __init__(self, value: Any, children: Callable[[Any], Iterable[Any]]) -> None:
        self.value, self.rest = value, iter(children(value))
        self.size, self.levels = 1, 0

    def add(self, size: int, levels: int) -> None:
        """Count a part."""
        self.size += size
        self.levels = max(self.levels, levels + 1)
