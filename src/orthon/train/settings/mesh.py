"""The settings of the mesh of processes."""

from orthon.train.errors import UserError
from orthon.train.settings.base import Count, Settings


class MeshConfig(Settings):
    """How the processes that torchrun starts share the work. The product of the three is their number."""

    dp_replicate: Count | None = None
    """Copies of the model, each with its own part of the batch. Default: as many as there are processes for."""
    dp_shard: Count = 1
    """Processes that divide the weights of one copy, each with its own part of the batch (FSDP)."""
    tp: Count = 1
    """Processes that divide the products of each layer, on the same part of the batch (tensor parallelism)."""

    def sizes(self, processes: int) -> tuple[int, int, int]:
        """dp_replicate, dp_shard and tp for a number of processes.

        Raises:
            UserError: their product is not that number.
        """
        copies = self.dp_replicate
        if copies is None:
            copies = max(processes // (self.dp_shard * self.tp), 1)
        product = copies * self.dp_shard * self.tp
        if product == processes:
            return copies, self.dp_shard, self.tp
        given = f"mesh.dp_replicate × mesh.dp_shard × mesh.tp ({copies} × {self.dp_shard} × {self.tp})"
        if processes > 1:
            raise UserError(
                f"{given} must be the number of processes but is {product}, and torchrun has started {processes}"
            )
        raise UserError(
            f"{given} takes {product} processes, but this is the only one: "
            f"torchrun --nproc-per-node {product} -m orthon …"
        )
