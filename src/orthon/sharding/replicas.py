"""The replicas: ranks that train on other data, as the user names them."""

from typing import cast

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh


def replica_group(replicas: ProcessGroup | DeviceMesh | None, owner: str) -> ProcessGroup | None:
    """Return the process group of the replicas, or None if there are none.

    Args:
        replicas: a process group, or a device mesh with one axis.
        owner: the optimizer, for errors.

    Raises:
        TypeError, ValueError: for anything else, and for ranks without this one.
    """
    if replicas is None:
        return None
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
