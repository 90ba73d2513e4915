"""The processes that train one model together, as one of them sees them."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from orthon.train.errors import TrainingError, UserError
from orthon.train.processes.launch import process_rank, processes
from orthon.train.settings.run import DeviceName, RunConfig

T = TypeVar("T")

REPLICATE, SHARD, TENSOR = AXES = ("dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class Processes:
    """This process among the others. If it is the only one, it has no mesh and waits for nobody."""

    device: torch.device
    mesh: DeviceMesh | None = None  # its three axes have the names of the settings
    rank: int = 0
    world: int = 1
    background: dist.ProcessGroup | None = None  # all ranks, for writing checkpoints during training

    def size(self, axis: str) -> int:
        """Return the number of ranks along an axis of the mesh."""
        return 1 if self.mesh is None else self.mesh[axis].size()

    def place(self, axis: str) -> int:
        """Return the position of this rank along an axis of the mesh."""
        return 0 if self.mesh is None else self.mesh[axis].get_local_rank()

    @property
    def data_world(self) -> int:
        """Number of parts into which the ranks divide the batch."""
        return self.size(REPLICATE) * self.size(SHARD)

    @property
    def data_rank(self) -> int:
        """Number of this rank's part of the batch. Ranks that differ in `tp` alone have the same part."""
        return self.rank // self.size(TENSOR)

    def sum(self, number: float) -> float:
        """Return the sum of a number over all ranks."""
        if self.mesh is None:
            return number
        total = torch.tensor(number, dtype=torch.float64)  # on the CPU, so that no GPU must be waited for
        dist.all_reduce(total)
        return total.item()

    def mean(self, number: float) -> float:
        """Return the mean of a number over all ranks."""
        return self.sum(number) / self.world

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on one of the ranks."""
        return self.sum(flag) > 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor on the device by its sum over all ranks."""
        if self.mesh is not None:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace each entry of a tensor on the device by its maximum over all ranks."""
        if self.mesh is not None:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of the ranks."""
        if self.mesh is None:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on every rank, and wait for all. An error on one rank is raised on all."""
        if self.mesh is None:
            return function()
        result: T | None = None
        error: Exception | None = None
        try:
            result = function()
        except (UserError, TrainingError, OSError) as caught:
            error = caught
        for first in self.gather(error):
            if first is not None:
                raise first
        return result  # type: ignore[return-value]  # without an error there is a result

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone, and return its result on every rank. An error is raised on all."""
        box = [self.together(lambda: function() if self.rank == 0 else None)]
        if self.mesh is not None:
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]


def join_ranks(config: RunConfig) -> Processes:
    """Make the mesh that the settings ask for.

    Raises:
        UserError: the mesh does not fit the number of processes, or the batch or the GPUs do not fit the mesh.
    """
    world = processes()
    sizes = config.mesh.sizes(world)
    parts = sizes[0] * sizes[1] * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"batch_size must be a multiple of mesh.dp_replicate × mesh.dp_shard × accumulation "
            f"({sizes[0]} × {sizes[1]} × {config.accumulation}) but is {config.batch_size}"
        )
    device = _device(config.device)
    if world == 1:
        # PyTorch would warn at every save and load.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        return Processes(device)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
    # Always gloo: what it sends is in main memory, and two NCCL collectives must not run at once.
    return Processes(device, mesh, process_rank(), world, dist.new_group(backend="gloo"))


def _device(name: DeviceName) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch sees no GPU")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes() == 1:
        return torch.device("cuda")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > gpus:
        raise UserError(f"{here} processes run on this machine, but PyTorch sees {gpus} GPUs; each process needs one")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())
