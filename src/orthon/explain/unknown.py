"""Processes of which an optimizer does not know what they do."""

from collections.abc import Sequence

import torch.distributed as dist

from orthon.step.member import Member


def unknown_replicas(members: Sequence[Member], *, known: bool) -> str:
    """Return what to say where processes exist, and each updates parameters by itself; "" if there is nothing to say.

    Args:
        members: the parameters.
        known: whether the user has named replicas.
    """
    if known or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ""
    alone = sum(member.layout.everyone.size == 1 for member in members)
    if not alone:
        return ""
    return (
        f"note: there are {dist.get_world_size()} processes, but this one updates {alone} of {len(members)} parameters "
        'by itself. If the others train copies of them, replicas="world" or a process group lets all share the work'
    )
