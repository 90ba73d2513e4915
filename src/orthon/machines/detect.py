"""Which machine a device is, and what a user may write for one."""

import os
from dataclasses import replace
from difflib import get_close_matches
from functools import cache

import torch
import torch.distributed as dist

from orthon.machines.machine import Machine
from orthon.machines.table import GPU_NAMES, MACHINES, UNKNOWN_GPU

# The memory of a GPU is rounded down to a multiple of this. What drivers report differs a little, and ranks that read
# different figures would make different plans.
MEMORY_STEP = 4e9


def as_machine(value: Machine | str | None, device: torch.device) -> Machine:
    """Return the machine that a user means.

    Args:
        value: a machine, the name of one in `MACHINES`, or None for that of the device.
        device: where the parameters are; not meta if `value` is None.

    Raises:
        TypeError: if `value` is none of these.
        ValueError: if no machine has that name.
    """
    return named_machine(value) or machine_of(device)


def named_machine(value: Machine | str | None, where: str = "") -> Machine | None:
    """Return the machine that a user means, or None if the user leaves that to the device.

    Args:
        value: a machine, or the name of one in `MACHINES`.
        where: what the machine was given for; starts the message of an error.

    Raises:
        TypeError: if `value` is none of these.
        ValueError: if no machine has that name.
    """
    if value is None or isinstance(value, Machine):
        return value
    names = ", ".join(map(repr, MACHINES))
    start = f"{where}: " if where else ""
    message = f"{start}machine should be None, an orthon.machines.Machine or one of {names}, but is {value!r}"
    if not isinstance(value, str):
        raise TypeError(message)
    if value not in MACHINES:
        close = get_close_matches(value.lower(), MACHINES, n=1)
        raise ValueError(message + (f"; did you mean {close[0]!r}?" if close else ""))
    return MACHINES[value]


def machine_of(device: torch.device) -> Machine:
    """Return the machine of a device: its row of `MACHINES`, with the ranks per node, and a GPU's memory, as they are.

    A GPU that the table does not have is taken for an A100, and its name says so. Where torchrun does not tell how many
    ranks a node has, it is taken for as many as it has GPUs; of CPUs, all ranks are taken to be on one node.

    Args:
        device: not meta, which is nowhere.
    """
    assert device.type != "meta", "parameters on meta are on no machine: say on which one they will be"
    return _detected(device, _ranks_per_node(device))


@cache
def _detected(device: torch.device, ranks_per_node: int) -> Machine:
    if device.type == "cpu":
        return replace(MACHINES["cpu"], ranks_per_node=ranks_per_node)
    if device.type != "cuda":
        unknown = MACHINES[UNKNOWN_GPU]
        return replace(unknown, name=f"{device.type}, taken for {UNKNOWN_GPU}", ranks_per_node=ranks_per_node)
    gpu = torch.cuda.get_device_name(device)
    row = next((row for start, row in GPU_NAMES.items() if gpu.removeprefix("NVIDIA ").startswith(start)), None)
    total = torch.cuda.get_device_properties(device).total_memory
    return replace(
        MACHINES[row or UNKNOWN_GPU],
        name=row or f"{gpu}, taken for {UNKNOWN_GPU}",
        memory=max(MEMORY_STEP, total // MEMORY_STEP * MEMORY_STEP),
        ranks_per_node=ranks_per_node,
    )


def _ranks_per_node(device: torch.device) -> int:
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cpu":
        return dist.get_world_size() if dist.is_initialized() else 1
    visible = torch.cuda.device_count()
    # Some launchers show each rank its own GPU alone. One GPU says nothing about the node.
    return visible if visible > 1 else 8
