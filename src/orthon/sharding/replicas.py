"""The replicas: ranks that train on other data, as the user names them."""

import os
from typing import cast

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh


def replica_group(replicas: ProcessGroup | DeviceMesh | str | None, owner: str) -> ProcessGroup | None:
    """Return the process group of the replicas, or None if there are none.

    Args:
        replicas: a process group, or a device mesh with one axis; "world" for all processes.
        owner: the optimizer, for errors.

    Raises:
        TypeError, ValueError: for anything else, and for ranks without this one.
    """
    if replicas is None:
        return None
    if isinstance(replicas, str):
        return _world(replicas, owner)
    if isinstance(replicas, DeviceMesh):
        if replicas.ndim != 1:
            raise ValueError(
                f"{owner}: replicas should be a process group or a device mesh with one axis, but is {replicas}; "
                "choose an axis as in mesh['replicate']"
            )
        replicas = replicas.get_group()
    if cast(object, replicas) is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group returns to the others
        raise ValueError(f"{owner}: replicas should include this rank, {dist.get_rank()}, but is a group of others")
    if not isinstance(replicas, ProcessGroup):
        raise TypeError(f"{owner}: replicas should be a process group or a device mesh, but is {replicas!r}")
    return replicas


def _world(name: str, owner: str) -> ProcessGroup | None:
    """Return the group of all processes; None for a process that is alone."""
    if name != "world":
        raise ValueError(f"{owner}: replicas should be a process group, a device mesh or 'world', but is {name!r}")
    if dist.is_initialized():
        return dist.group.WORLD
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # which torchrun sets
        raise ValueError(
            f'{owner}: replicas="world" asks for all processes, but they have not met yet; call '
            "torch.distributed.init_process_group() before"
        )
    return None
