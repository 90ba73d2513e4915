"""Work on whole matrices, of which each rank holds a shard: their polar factors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group, Option, choice, float_dtype_or_none, integer, own
from orthon.algorithms.work import MATRIX_OPTIONS, Work
from orthon.linalg import factor_dtype, polar, polar_dtype, polar_flops, polar_on_shards, shards_cost
from orthon.linalg.polar import METHODS
from orthon.sharding import Layout, Owners, Step, flops_per_number

POLAR_OPTIONS: Mapping[str, Option] = {
    "polar": choice(*METHODS),
    "polar_steps": integer(5, at_least=1),
    "polar_dtype": float_dtype_or_none(float16=False),
}


@dataclass(frozen=True)
class WholeMatrix(Work):
    """One polar factor of each matrix. An owner computes it, or all ranks do together on their shards."""

    takes_matrices = True
    options: ClassVar[Mapping[str, Option]] = {
        **MATRIX_OPTIONS,
        **POLAR_OPTIONS,
        "polar_route": own(choice("auto", "owners", "shards")),
    }

    def check_layout(self, layout: Layout, options: Group) -> None:
        """Raise a ValueError if the group asks for work on shards where both sides of a matrix are cut, or none."""
        if options["polar_route"] == "shards" and layout.everyone.size > 1 and sum(map(bool, layout.cuts)) != 1:
            raise ValueError(
                "polar_route='shards' needs matrices of which one side alone is cut over ranks, but it lies as "
                f"{layout}; give it to a group with 'auto' or 'owners'"
            )

    def temporaries(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:
        """Return the bytes of five matrices: what is orthonormalized, and what a square one takes for that."""
        dtype = self.polar_dtype(options["state_dtype"] or dtype, layout, options)
        return 5.0 * math.prod(layout.largest_shard) * dtype.itemsize

    def cost(self, shape: tuple[int, ...], options: Group) -> float:
        """Return the operations for the polar factor of one matrix."""
        m, n = shape
        return polar_flops(m, n, method=options["polar"], steps=options["polar_steps"])

    def route(self, layout: Layout, count: int, options: Group) -> str:
        """Return how polar factors are computed: "alone", by "owners", or on "shards".

        An owner receives all shards of a matrix and sends back those of its polar factor: twice the numbers of this
        rank's shard. On shards, where one side alone is cut, the ranks sum the Gram matrix of the other side, and each
        multiplies its shard by a polynomial in it. The estimate weighs the operations of the busiest rank, and the
        numbers that it sends with `flops_per_number`.
        """
        if layout.everyone.size == 1:
            return "alone"
        cuts = [dim for dim in (0, 1) if layout.cuts[dim]]
        if options["polar_route"] != "auto" or len(cuts) != 1:
            return "shards" if options["polar_route"] == "shards" else "owners"
        long, short = layout.largest_shard if cuts[0] == 0 else layout.largest_shard[::-1]  # long is what is cut
        ranks = layout.grid.along(layout.cuts[cuts[0]]).size
        here, owned = -(-count * ranks // layout.everyone.size), -(-count // layout.everyone.size)
        sums, flops = shards_cost(long, short, method=options["polar"], steps=options["polar_steps"])
        per_number = flops_per_number(layout.device)
        by_owners = owned * self.cost(layout.shape, options) + here * long * short * per_number
        on_shards = here * (flops + sums * short * (short + 1) / 2 * per_number)
        return "shards" if on_shards < by_owners else "owners"

    def polar_dtype(self, storage: torch.dtype, layout: Layout, options: Group) -> torch.dtype:
        """Return the dtype in which polar factors of matrices stored as `storage` are computed, and sent."""
        return dtype_of_polar(storage, layout, options)


def dtype_of_polar(storage: torch.dtype, layout: Layout, options: Group) -> torch.dtype:
    """Return the dtype in which polar factors of matrices stored as `storage` are computed, and sent."""
    if options["polar"] == "svd":
        return factor_dtype(options["polar_dtype"] or storage)
    chosen: torch.dtype = options["polar_dtype"] or polar_dtype(storage, layout.device, layout.shape)
    return chosen


def polar_factor(U: Tensor | Sequence[Tensor], batch: Batch) -> Step[Tensor]:
    """Return this rank's shards (b, m, n) of the polar factors of matrices, in the dtype in which they are computed.

    Args:
        U: this rank's shard of each matrix, (b, m, n) or a list, in any floating dtype. A tensor may be overwritten.
        batch: to which they belong, of a rule with the work `WholeMatrix`.
    """
    layout, options, b = batch.layout, batch.options, len(U)
    U = U if isinstance(U, Tensor) else torch.stack(list(U))
    U = U.to(dtype_of_polar(U.dtype, layout, options))
    if layout.everyone.size == 1:
        return polar(U, method=options["polar"], steps=options["polar_steps"], dtype=U.dtype, overwrite=True)
    assert batch.owners is not None
    owners = Owners(layout, batch.owners, unsynced=batch.unsynced)
    if WholeMatrix().route(layout, b, options) == "owners":
        shards = yield from polar_by_owners(list(U.unbind()), owners, U, options)
        return torch.stack(shards)
    mine = yield from owners.take(U.unbind())
    stacked = torch.stack(mine) if mine else U[:0]
    cut = 0 if layout.cuts[0] else 1
    tall = stacked if cut == 0 else stacked.mT  # what the ranks have is rows of it
    ranks = layout.grid.along(layout.cuts[cut])
    # Copies with more and with fewer matrices pause equally often, so that their collectives keep one order.
    found = yield from polar_on_shards(
        tall, ranks, method=options["polar"], steps=options["polar_steps"], dtype=U.dtype, most=b
    )
    found = found if cut == 0 else found.mT
    return torch.stack((yield from owners.send_to_copies(found.unbind(), [U.shape[1:]] * b, U)))


def polar_by_owners(shards: Sequence[Tensor], owners: Owners, like: Tensor, options: Group) -> Step[list[Tensor]]:
    """Return this rank's shards (m', n') of the polar factors of matrices, each computed by its owner.

    Args:
        shards: this rank's shard of each matrix.
        owners: of the matrices.
        like: any tensor of the dtype and on the device of the shards.
        options: with `POLAR_OPTIONS`.
    """
    shapes = [shard.shape for shard in shards]
    taken = yield from owners.take(shards)
    whole = yield from owners.bring(taken, like)
    found: Sequence[Tensor] = ()
    if whole:
        stacked, steps = torch.stack(whole), options["polar_steps"]
        found = polar(stacked, method=options["polar"], steps=steps, dtype=like.dtype, overwrite=True).unbind()
    returned = yield from owners.send_back(found, like)
    return (yield from owners.send_to_copies(returned, shapes, like))
