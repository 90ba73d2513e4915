"""The tail of an update of low rank: what the low-rank part leaves out, with columns of one length."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg import Columns, powers_of_two
from orthon.linalg.norms import squares_of_rows
from orthon.sharding import Side, Step, together

# How long the columns of the tail may be at most, for the direction of the low-rank part that is shortest beside them.
MOST = 2.0

# How far c stays below the largest number, for the learning rate by which it is multiplied.
HEADROOM = 2.0**-10


def tail_factors(
    N: Tensor, R: Tensor, right: Columns, *, size: float, noise: float, cols: Side, beside: Sequence[Step[Tensor]]
) -> Step[tuple[Tensor, list[Tensor]]]:
    """Return c for the tail E diag(c), where E = N − P Rᵀ is what P leaves out of N (b, m, n), and R = Nᵀ P (b, n, r).

    E is never formed. P is orthonormal, so that ‖E_j‖² = ‖N_j‖² − ‖R_j‖² for column j. With D = diag(1/‖E_j‖),

        c = D·min(size, MOST / min_k ‖(D R)_k‖)

    By the first bound, all columns of the tail have one length. The second is for directions that P has just missed,
    so that they do not count far more than those that P has. In training the two are about as large. There is no tail
    where a direction of P does not live, since N then has no more than those that do, nor in a column that E or N has
    only up to rounding. Columns of N that are hardly above the smallest numbers of the dtype have a shorter tail, so
    that c is far from its largest.

    Args:
        N: this rank's part of the matrices, (b, m', n').
        R: this rank's share of the rows of R, (b, share of n', r).
        right: which directions of R live, and how long they are.
        size: the length of a column of the tail.
        noise: up to which part of ‖N_j‖² the difference is rounding noise, and up to which part of the largest
            singular value a column is.
        cols: the side along which R lies.
        beside: sums of something else over the same ranks, which travel with a sum from here.

    Returns:
        c, (b, 1, n'), in float32, or in float64 for float64; and the results of `beside`.
    """
    longest = torch.where(right.live, right.size, 0).amax(-1)[:, None, None]
    range_ = torch.finfo(R.dtype)
    least = math.frexp(range_.tiny)[1]  # so that its inverse is finite
    unit = powers_of_two(torch.frexp(longest.double()).exponent.clamp(min=least))  # (b, 1, 1)
    whole = yield from cols.reduce(squares_of_rows(cols.divided(N.mT), unit))  # ‖N_j‖², (b, share of n', 1)
    R = R * (1 / unit).to(R.dtype)
    left = whole - R.square().sum(-1, keepdim=True)  # ‖E_j‖²
    floor = torch.maximum(noise * whole, (noise * longest / unit).square())  # of the column, and of the whole matrix
    D = torch.where(left > floor, left, math.inf).rsqrt()
    squares = (R * D.to(right.vectors.dtype)).square_().sum(-2)  # (b, r)
    lengths, *found = yield from together(cols.ranks.sum(squares), *beside)
    bound = MOST * torch.where(right.live, lengths, 0).amin(-1).rsqrt()  # infinite where a direction does not live
    factor = torch.where(right.live.all(-1), bound.clamp(max=size), 0)[:, None, None]
    c: Tensor = yield from cols.gather((D * factor / unit).clamp(max=range_.max * HEADROOM).to(R.dtype))
    return c.mT, found
