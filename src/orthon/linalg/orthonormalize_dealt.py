"""Orthonormal columns of tall matrices over several ranks, each of which factors the Gram matrices of some of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from orthon.linalg.arithmetic import Arithmetic
from orthon.linalg.columns import Columns, host_decides, in_range_, inverse_row
from orthon.linalg.device import is_readable
from orthon.linalg.factor_gram import Factor, first_factor, last_factor, needs_no_more, second_factor
from orthon.linalg.gram import gram_with_lengths, pack_upper, packed_size, unpack_upper
from orthon.linalg.precision import Noise
from orthon.linalg.row_ranks import Combine, Computation, RowRanks
from orthon.linalg.triangles import TRIES, inverted_by_halves, larger_where_broken, solved_, times_


def orthonormalize_dealt(
    B: Tensor, ranks: RowRanks, shift: float, *, left: Columns | None, noise: Noise, by: Arithmetic, turn: int
) -> Computation[Columns]:
    """Return what `orthonormalize` does, of matrices whose rows are spread over several ranks.

    A pass has two collectives. The triangles of the ranks' own Gram matrices are added up where each matrix is dealt
    to, and the triangles that come of them are gathered. What else a rank has to know of a matrix travels with them, so
    that all ranks go the same way.

    Args:
        B: this rank's rows, (b, m/ranks, r), in float32 or float64; overwritten.
        ranks: the ranks that hold rows.
        shift: for the diagonals of Gram matrices.
        left: as for `orthonormalize`.
        noise: of B.
        by: the arithmetic.
        turn: the place of the rank with which the dealing of the matrices starts, see `RowRanks`.
    """
    b, _, r = B.shape
    looks, mine = host_decides(B, by), ranks.mine(b, turn=turn)

    def dealt(x: Tensor, combine: Combine, make: Callable[[Tensor], Tensor]) -> Computation[Tensor]:
        """Return what `make` makes of the parts x (b, k) of all ranks put together, for all matrices."""
        whole = yield from ranks.reduce_matrices(x, combine, turn=turn)
        return (yield from ranks.gather_matrices(make(whole), b, turn=turn))

    # First pass. Each rank scales its rows by itself.
    gram, own_scale = in_range_(B, by.rough_gram, looks=looks, of_two=True)
    relative_noise = B.new_empty(0, r)
    shifts: float | Tensor = shift  # of the matrices that this rank factors

    def first(whole: Tensor) -> Tensor:
        nonlocal relative_noise, shifts
        scale = whole[:, -r:]
        here = None if left is None else Columns(left.vectors, left.live[mine], left.size[mine])
        factor, relative_noise = first_factor(unpack_upper(whole[:, :-r], r), scale, shifts, noise, here, by)
        for _ in range(TRIES if looks else 0):
            if bool((factor.left_over > 0).all()):
                break
            shifts = larger_where_broken(shifts, factor.left_over)
            factor, relative_noise = first_factor(unpack_upper(whole[:, :-r], r), scale, shifts, noise, here, by)
        return _packed(factor, by, scale)

    x = torch.cat([pack_upper(gram), own_scale], 1)
    del gram
    U, norm, live, scale = _unpacked((yield from dealt(x, lambda parts: _to_one_scale(parts, r), first)), r)
    residual = torch.linalg.diagonal(U).clone()  # what is left of a unit column beside the columns before it
    if by.times is not None:
        residual.reciprocal_()
    elif looks:  # where a factorization has broken down, its diagonal may have any numbers
        residual = torch.where(residual > 0, residual, 0)
    size = norm * scale
    ratio = torch.where(scale > 0, own_scale / scale, 0).unsqueeze(-2)
    B = _divided_(B, inverse_row(norm, live) * ratio, U, by)

    # Second pass. It is the last one if the rank of every matrix says so.
    def second(whole: Tensor) -> Tensor:
        gram = unpack_upper(whole, r)
        ends = looks and needs_no_more(gram, residual[mine], relative_noise)
        if ends:
            factor = last_factor(gram, live[mine], shifts, looks=looks)
        else:
            factor = second_factor(gram, live[mine], residual[mine], relative_noise, shifts, looks=looks)
        return _packed(factor, by, factor.left_over, torch.full_like(factor.norm[:, :1], ends))

    answer = yield from dealt(pack_upper(by.rough_gram(B)), _added, second)
    U, norm, live, facts = _unpacked(answer, r)
    left_over, ends = facts[:, :r], facts[:, r]
    B = _divided_(B, inverse_row(norm, live), U, by)
    if looks and bool(ends.all()):
        return Columns(B, live, residual * norm * size)
    residual *= norm * left_over

    # Third pass.
    def last(whole: Tensor) -> Tensor:
        return _packed(last_factor(unpack_upper(whole, r), live[mine], shifts, looks=looks), by)

    gram = by.gram(B) if by.times is None else gram_with_lengths(B, by.gram)
    answer = yield from dealt(pack_upper(gram), _added, last)
    U, norm, live, _ = _unpacked(answer, r)
    B = _divided_(B, inverse_row(norm, live), U, by, corrects=True)
    return Columns(B, live, residual * size)


def _added(parts: Tensor) -> Tensor:
    return parts.sum(0)


def _to_one_scale(parts: Tensor, r: int) -> Tensor:
    """Return the sum of Gram matrices of columns that each rank has divided by scales of its own.

    It may overwrite the parts.

    Args:
        parts: the packed upper triangles, and after them the scales, (s, b, packed size + r).
        r: the number of columns.

    Returns:
        the same of the sum, for the largest of the scales, (b, packed size + r).
    """
    scales = parts[..., -r:]  # (s, b, r)
    if is_readable(scales) and bool((scales == scales[:1]).all()):  # as almost always, and faster
        total = parts.sum(0)
        total[:, -r:] = scales[0]
        return total
    scale = scales.amax(0)
    ratios = torch.where(scale > 0, scales / scale, 0)
    index = torch.arange(r, device=parts.device)
    rows, columns = (pack_upper(i.expand(1, r, r))[0] for i in (index[:, None], index))  # of the packed numbers
    triangles = parts[..., :-r].mul_(ratios[..., rows]).mul_(ratios[..., columns])
    return torch.cat([triangles.sum(0), scale], 1)


def _packed(factor: Factor, by: Arithmetic, *facts: Tensor) -> Tensor:
    """Return what all ranks have to know of factored matrices, (b, k).

    It is a triangle by which columns are divided if the arithmetic solves systems, or its inverse if it multiplies;
    then the norms, which are negative for columns that do not live, and other facts (b, any).
    """
    U = factor.L.mT if by.times is None else inverted_by_halves(factor.L)
    norm = torch.where(factor.live, factor.norm, -factor.norm)
    return torch.cat([pack_upper(U), norm, *facts], 1)


def _unpacked(packed: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the triangle (b, r, r), the norms (b, r), which columns live (b, r), and the facts of `_packed`."""
    triangle, norm, facts = torch.tensor_split(packed, [packed_size(r), packed_size(r) + r], 1)
    return unpack_upper(triangle, r).triu_(), norm.abs(), norm > 0, facts


def _divided_(B: Tensor, inverse: Tensor, U: Tensor, by: Arithmetic, *, corrects: bool = False) -> Tensor:
    """Return the columns B · inverse divided by the triangle, or multiplied by the inverse one; overwrites B."""
    B.mul_(inverse)
    return solved_(B, U) if by.times is None else times_(B, U, by, corrects=corrects)
