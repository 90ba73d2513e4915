"""Work on whole matrices, of which each rank holds a shard: their polar factors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import Group, Option, choice, float_dtype_or_none, integer, own
from orthon.algorithms.work import MATRIX_OPTIONS, Effort, Work
from orthon.linalg import factor_dtype, polar, polar_bytes, polar_dtype, polar_flops, polar_on_shards, shards_cost
from orthon.linalg.polar import METHODS
from orthon.sharding import Layout, Owners, Shards, Step

POLAR_OPTIONS: Mapping[str, Option] = {
    "polar": choice(*METHODS),
    "polar_steps": integer(5, at_least=1),
    "polar_dtype": float_dtype_or_none(float16=False),
}


@dataclass(frozen=True)
class PolarWork(Work):
    """Work on polar factors.

    Attributes:
        moments: whether the update is divided by moments of its rows, which takes memory.
    """

    moments: bool = False

    takes_matrices = True

    def polar_dtype(self, storage: torch.dtype, layout: Layout, options: Group) -> torch.dtype:
        """Return what `dtype_of_polar` does."""
        return dtype_of_polar(storage, layout, options)


@dataclass(frozen=True)
class WholeMatrix(PolarWork):
    """One polar factor of each matrix. An owner computes it, or all ranks do together on their shards."""

    copies_divide_matrices = True
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

    def routes(self, layout: Layout, options: Group) -> tuple[str, ...]:
        """Return "owners", or "shards" where one side alone is cut.

        On shards the ranks sum the Gram matrix of the side that is not cut, and each multiplies its shard by a
        polynomial in it. From "auto" that never follows for "svd", which would not be as exact there.
        """
        asked = options["polar_route"]
        if asked != "auto":
            return (asked,)
        return ("owners", "shards") if sum(map(bool, layout.cuts)) == 1 and options["polar"] != "svd" else ("owners",)

    def effort(self, route: str, layout: Layout, options: Group) -> Effort:
        """Return what the polar factor of one matrix takes.

        An owner receives the shards of a matrix, and sends back those of the polar factor. Copies get theirs by a
        gathering, however it is computed. On shards they divide the matrices.
        """
        method, steps = options["polar"], options["polar_steps"]
        m, n = layout.shape
        here, copies = math.prod(layout.largest_shard), layout.copies(unsynced=False).size
        to_copies = here * (copies - 1) / copies
        if route != "shards":
            return Effort(polar_flops(m, n, method=method, steps=steps), 0.0, 2.0 * here / copies + to_copies)
        cut = 0 if layout.cuts[0] else 1
        long, short = layout.largest_shard if cut == 0 else layout.largest_shard[::-1]  # long is what is cut
        sums, flops = shards_cost(long, short, method=method, steps=steps)
        return Effort(flops / copies, 0.0, sums * short * (short + 1) / copies + to_copies)

    def owned_bytes(self, layout: Layout, options: Group, dtype: torch.dtype) -> float:
        """Return the bytes of the polar factor while it is computed, or after that on its way back.

        With moments, or of two matrices in float32, of which each rank has shards.
        """
        dtype = self.polar_dtype(options["state_dtype"] or dtype, layout, options)
        (m, n), numbers = layout.shape, math.prod(layout.shape)
        computing = polar_bytes(m, n, method=options["polar"], steps=options["polar_steps"], dtype=dtype)
        return max(computing, 2.0 * numbers * (factor_dtype(dtype) if self.moments else dtype).itemsize)


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
    if batch.route == "alone":
        found = polar(U, method=options["polar"], steps=options["polar_steps"], dtype=U.dtype, overwrite=True)
        batch.check_finite(found[:, 0, :1], "momentum")
        return found
    owners = batch.owned(layout)
    if batch.route == "owners":
        working = polar_by_owners(U, owners, U.new_empty(0), options)
        del U  # so that its memory is free when it has been sent
        return cast(Tensor, (yield from working))
    mine = cast(Tensor, (yield from owners.take(U)))
    cut = 0 if layout.cuts[0] else 1
    tall = mine if cut == 0 else mine.mT  # what the ranks have is rows of it
    ranks = layout.grid.along(layout.cuts[cut])
    # Copies with more and with fewer matrices pause equally often, so that their collectives keep one order.
    found = yield from polar_on_shards(
        tall, ranks, method=options["polar"], steps=options["polar_steps"], dtype=U.dtype, most=b
    )
    found = found if cut == 0 else found.mT
    return cast(Tensor, (yield from owners.send_to_copies(found, [U.shape[1:]] * b, U)))


def polar_by_owners(
    shards: Shards, owners: Owners, like: Tensor, options: Group, *, rows: Sequence[Sequence[int]] | None = None
) -> Step[Shards]:
    """Return this rank's shards (b, m', n') of the polar factors of matrices, each computed by its owner.

    Args:
        shards: this rank's shard of each matrix. A list if the ranks have unequally many rows of them.
        owners: of the matrices.
        like: any tensor of the dtype and on the device of the shards.
        options: with `POLAR_OPTIONS`.
        rows: for each matrix which of its rows are sent, if not all.
    """
    shapes = [shard.shape for shard in shards]
    taking = owners.take(shards)
    del shards  # so that their memory is free when they have been sent, and so below
    whole = yield from owners.bring((yield from taking), like, rows=rows)
    if len(whole):
        whole = _polar(whole, like.dtype, options)
    returning = owners.send_back(whole, like, rows=rows)
    del whole
    return (yield from owners.send_to_copies((yield from returning), shapes, like))


def _polar(whole: Shards, dtype: torch.dtype, options: Group) -> Shards:
    """Return the polar factors of whole matrices, of which those in a list go out of it."""
    stacked = whole if isinstance(whole, Tensor) else torch.stack(whole)
    if isinstance(whole, list):
        whole.clear()
    found = polar(stacked, method=options["polar"], steps=options["polar_steps"], dtype=dtype, overwrite=True)
    return found if isinstance(whole, Tensor) else list(found.unbind())
