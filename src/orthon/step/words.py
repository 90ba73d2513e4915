"""What users are told: some of many names, and warnings that point to a line of their own."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# Packages whose functions stand between a user's line and what it leads to: hooks, decorators, schedulers.
_BETWEEN = {"orthon", "torch"}


def some(names: Sequence[Any], *, most: int = 3, said: Callable[[Any], str] = repr) -> str:
    """Return the first of the names in words, and how many more there are; "" if there are none.

    Args:
        names: of anything.
        most: how many of them to tell.
        said: returns a name as text.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(said, names[:most])) + more


def warn(message: str) -> None:
    """Give a UserWarning that points to the innermost line outside of Orthon and torch, which a user has written."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
