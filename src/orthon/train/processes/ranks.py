"""The processes that train one model together, as one of them sees it."""

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
class Ranks:
    """Where this process stands; alone, it has no mesh and waits for nobody."""

    device: torch.device
    mesh: DeviceMesh | None = None  # of three axes, named as the settings
    rank: int = 0
    world: int = 1
    background: dist.ProcessGroup | None = None  # all ranks, for what they do beside training

    def size(self, axis: str) -> int:
        """Ranks along an axis of the mesh."""
        return 1 if self.mesh is None else self.mesh[axis].size()

    def place(self, axis: str) -> int:
        """Where this rank stands along an axis of the mesh."""
        return 0 if self.mesh is None else self.mesh[axis].get_local_rank()

    @property
    def data_world(self) -> int:
        """Number of parts into which the batch is cut."""
        return self.size(REPLICATE) * self.size(SHARD)

    @property
    def data_rank(self) -> int:
        """Which part of the batch is this rank's; ranks that differ in `tp` alone have the same."""
        return self.rank // self.size(TENSOR)

    def sum(self, *numbers: float) -> list[float]:
        """Each number's sum over all ranks."""
        if self.mesh is None:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)  # on the CPU: a GPU need not be waited for
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def mean(self, number: float) -> float:
        """A number's mean over all ranks."""
        return self.sum(number)[0] / self.world

    def any(self, flag: bool) -> bool:
        """Whether it is true on one of the ranks."""
        return self.sum(flag)[0] > 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor on the device by its sum over all ranks."""
        if self.mesh is not None:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor on the device by its largest entries over all ranks."""
        if self.mesh is not None:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, value: T) -> list[T]:
        """What each rank brings, in their order."""
        if self.mesh is None:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def together(self, function: Callable[[], T]) -> T:
        """Call it on every rank and wait for all; an error of one rank is raised by all."""
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
        return result  # type: ignore[return-value]  # without an error there is one

    def on_main(self, function: Callable[[], T]) -> T:
        """Call it on rank 0 alone and return its result on every rank; an error is raised by all."""
        box = [self.together(lambda: function() if self.rank == 0 else None)]
        if self.mesh is not None:
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]


def join_ranks(config: RunConfig) -> Ranks:
    """This process's place in the mesh that the settings ask for.

    Raises:
        UserError: The mesh does not fit the number of processes, or the batch or the GPUs do not fit the mesh.
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
        # Whenever it saves or loads, torch would say so.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        return Ranks(device)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
    # Always gloo: what it carries is in main memory, and an NCCL collective must not run beside another one.
    return Ranks(device, mesh, process_rank(), world, dist.new_group(backend="gloo"))


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
