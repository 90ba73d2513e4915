"""The polar factors of matrices of which each rank holds a part."""

from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group, choice, float_dtype_or_none, integer, own
from orthon.linalg import factor_dtype, polar, polar_dtype, polar_flops, polar_on_shards, shards_cost
from orthon.linalg.polar import METHODS
from orthon.sharding import Layout, Owners, Step, flops_per_number

POLAR_OPTIONS = {
    "polar": choice(*METHODS),
    "polar_steps": integer(5, at_least=1),
    "polar_route": own(choice("auto", "owners", "shards")),
    "polar_dtype": float_dtype_or_none(float16=False),
}


def polar_factor(U: Tensor, batch: Batch, group: Group) -> Step[Tensor]:
    """Return this rank's part (b, m, n) of the polar factors of matrices, in the dtype in which they are computed.

    Args:
        U: this rank's part of the matrices, (b, m, n), in `dtype_of_polar`. May be overwritten.
        batch: to which they belong.
        group: with `POLAR_OPTIONS`.
    """
    layout, b = batch.layout, len(U)
    if layout.everyone.size == 1:
        return polar(U, method=group["polar"], steps=group["polar_steps"], dtype=U.dtype, overwrite=True)
    assert batch.owners is not None
    owners = Owners(layout, batch.owners, unsynced=batch.unsynced)
    if goes_by(layout, b, group) == "owners":
        parts = yield from polar_by_owners(list(U.unbind()), owners, U, group)
        return torch.stack(parts)
    mine = yield from owners.take(U.unbind())
    stacked = torch.stack(mine) if mine else U[:0]
    cut = 0 if layout.cuts[0] else 1
    tall = stacked if cut == 0 else stacked.mT  # what the ranks have is rows of it
    ranks = layout.grid.along(layout.cuts[cut])
    # Copies with more and with fewer matrices pause equally often, so that their collectives keep one order.
    found = yield from polar_on_shards(
        tall, ranks, method=group["polar"], steps=group["polar_steps"], dtype=U.dtype, most=b
    )
    found = found if cut == 0 else found.mT
    return torch.stack((yield from owners.share(found.unbind(), [U.shape[1:]] * b, U)))


def dtype_of_polar(storage: torch.dtype, layout: Layout, group: Group) -> torch.dtype:
    """Return the dtype in which polar factors of matrices stored as `storage` are computed, and sent."""
    if group["polar"] == "svd":
        return factor_dtype(group["polar_dtype"] or storage)
    return group["polar_dtype"] or polar_dtype(storage, layout.device, layout.shape)


def polar_by_owners(parts: Sequence[Tensor], owners: Owners, like: Tensor, group: Group) -> Step[list[Tensor]]:
    """Return this rank's parts (m', n') of the polar factors of matrices, each computed by its owner.

    Args:
        parts: this rank's part of each matrix.
        owners: of the matrices.
        like: any tensor of the dtype and on the device of the parts.
        group: with `POLAR_OPTIONS`.
    """
    shapes = [part.shape for part in parts]
    taken = yield from owners.take(parts)
    whole = yield from owners.bring(taken, like)
    found: Sequence[Tensor] = ()
    if whole:
        stacked, steps = torch.stack(whole), group["polar_steps"]
        found = polar(stacked, method=group["polar"], steps=steps, dtype=like.dtype, overwrite=True).unbind()
    returned = yield from owners.send_back(found, like)
    return (yield from owners.share(returned, shapes, like))


def polar_cost(shape: tuple[int, ...], group: Group) -> float:
    """Return the operations for the polar factor of one matrix."""
    m, n = shape
    return polar_flops(m, n, method=group["polar"], steps=group["polar_steps"])


def check_route(layout: Layout, group: Group) -> None:
    """Raise a ValueError if the group asks for work on shards where both sides of a matrix are cut, or none."""
    if group["polar_route"] == "shards" and layout.everyone.size > 1 and sum(map(bool, layout.cuts)) != 1:
        raise ValueError(
            f"polar_route='shards' needs matrices of which one side alone is cut over ranks, but it lies as {layout}; "
            "give it to a group with 'auto' or 'owners'"
        )


def goes_by(layout: Layout, count: int, group: Group) -> str:
    """Return how the polar factors of matrices are computed: "alone", by "owners", or on "shards".

    Owners: each matrix is sent to one rank and its polar factor back, twice the numbers of this rank's part. Shards:
    where one side alone is cut, the ranks sum the Gram matrix of the other side and multiply their parts by a
    polynomial in it, which each of them computes. The estimate weighs the operations of the busiest rank, and the
    numbers that it sends with `flops_per_number`.
    """
    if layout.everyone.size == 1:
        return "alone"
    cuts = [dim for dim in (0, 1) if layout.cuts[dim]]
    if group["polar_route"] != "auto" or len(cuts) != 1:
        return "shards" if group["polar_route"] == "shards" else "owners"
    long, short = layout.largest if cuts[0] == 0 else layout.largest[::-1]  # long is what is cut
    ranks = layout.grid.along(layout.cuts[cuts[0]]).size
    here, owned = -(-count * ranks // layout.everyone.size), -(-count // layout.everyone.size)
    sums, flops = shards_cost(long, short, method=group["polar"], steps=group["polar_steps"])
    per_number = flops_per_number(layout.device)
    by_owners = owned * polar_cost(layout.shape, group) + here * long * short * per_number
    on_shards = here * (flops + sums * short * (short + 1) / 2 * per_number)
    return "shards" if on_shards < by_owners else "owners"
