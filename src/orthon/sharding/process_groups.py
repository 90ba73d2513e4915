"""One process group for each set of ranks, made once."""

from collections.abc import Iterable

import torch.distributed as dist

# The groups made for a default group, which is forgotten with all of them when another takes its place.
_made: dict[tuple[int, ...], dist.ProcessGroup] = {}
_made_for: dist.ProcessGroup | None = None


def process_group(ranks: Iterable[int]) -> dist.ProcessGroup:
    """Return the process group of a set of global ranks; all of them, and no others, must ask for it.

    Nothing else may be in flight among these ranks when a group is asked for the first time.
    """
    key = tuple(sorted(ranks))
    _forget_if_restarted()
    if key not in _made:
        # Only members take part, so that pipeline stages with other parameters do not wait for each other.
        _made[key] = dist.new_group(list(key), use_local_synchronization=True)
    return _made[key]


def register(group: dist.ProcessGroup) -> None:
    """Use a group that exists already for its set of ranks."""
    _forget_if_restarted()
    _made.setdefault(tuple(sorted(dist.get_process_group_ranks(group))), group)


def _forget_if_restarted() -> None:
    global _made_for
    if dist.group.WORLD is not _made_for:
        _made.clear()
        _made_for = dist.group.WORLD
