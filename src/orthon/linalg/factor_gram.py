"""The three Cholesky factorizations of the Gram matrices of a batch, one for each pass over its columns.

They are what `orthonormalize` does in its passes, for the rank that has the whole Gram matrices. If the host looks at
results, no factorization is repeated unless columns are dropped. If it does not, that of the second pass always is, and
the last one drops columns on the way.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from orthon.linalg.arithmetic import Arithmetic
from orthon.linalg.axis_norms import axis_norms
from orthon.linalg.columns import Columns, inverse_row, noise_floor
from orthon.linalg.dropping import cholesky_dropping_
from orthon.linalg.precision import Noise
from orthon.linalg.triangles import cholesky_, equilibrated_, is_sound


class Factor(NamedTuple):
    """A Cholesky factor of the Gram matrices of unit columns, with unit rows for columns that do not live.

    Attributes:
        L: the lower factor, (b, r, r).
        norm: what the columns were divided by to be unit columns, (b, r).
        live: which columns live, (b, r).
        left_over: how much of each unit column is left beside the columns before it, (b, r).
    """

    L: Tensor
    norm: Tensor
    live: Tensor
    left_over: Tensor


def first_factor(
    gram: Tensor, scale: Tensor, shift: float | Tensor, noise: Noise, left: Columns | None, by: Arithmetic
) -> tuple[Factor, Tensor]:
    """Return the factor of the first pass, which drops columns that are noise beside the whole matrix.

    Args:
        gram: (b, r, r), of the scaled columns; overwritten. What is below the diagonal is not read, here and below.
        scale: what the columns were divided by, (b, r).
        shift: for the diagonal, so that all Gram matrices have a factor; a number, or one for each matrix, (b, 1).
        noise: of the columns.
        left: the orthonormal columns P, if the columns are those of Mᵀ P.
        by: the arithmetic.

    Returns:
        the factor, and how much of a unit column is noise, (b, r).
    """
    norm = torch.linalg.diagonal(gram).sqrt()
    floor = noise_floor(norm, scale, noise.of_matrix, left, by)
    live = norm > floor
    relative_noise = torch.clamp(floor / norm, min=max(noise.of_column, by.noise.of_column))
    L = cholesky_(equilibrated_(gram, inverse_row(norm, live)), shift)
    return Factor(L, norm, live, torch.linalg.diagonal(L).clone()), relative_noise


def second_factor(
    gram: Tensor, live: Tensor, residual: Tensor, relative_noise: Tensor, shift: float | Tensor, *, looks: bool
) -> Factor:
    """Return the factor of the second pass, which drops columns of which nothing but noise is left.

    Args:
        gram: (b, r, r); overwritten.
        live: which columns live before, (b, r).
        residual: how much was left of each unit column in the first pass, (b, r).
        relative_noise: how much of it is noise, (b, r).
        shift: for the diagonal.
        looks: whether the host looks at results.
    """
    norm = torch.linalg.diagonal(gram).sqrt()
    L = cholesky_(equilibrated_(gram.clone(), inverse_row(norm, live)), shift)
    left_over = torch.linalg.diagonal(L).clone()
    if looks:  # where a factorization has broken down, its diagonal may have any numbers
        left_over = torch.where(left_over > 0, left_over, 0)
    before, live = live, live & (residual * norm * left_over > relative_noise) & (left_over > 4 * shift**0.5)
    if not (looks and torch.equal(before, live)):
        L = cholesky_(equilibrated_(gram, inverse_row(norm, live)), shift)
    return Factor(L, norm, live, left_over)


def last_factor(gram: Tensor, live: Tensor, shift: float | Tensor, *, looks: bool) -> Factor:
    """Return the factor of the last pass, without a shift. It drops columns that are still far from orthogonal.

    A matrix for which even this fails (Kahan's, with hundreds of columns) is left out: its columns do not live.

    Args:
        gram: (b, r, r); overwritten.
        live: which columns live before, (b, r).
        shift: for the diagonal where columns are sought that are to be dropped.
        looks: whether the host looks at results.
    """
    norm = torch.linalg.diagonal(gram).sqrt()
    inverse = inverse_row(norm, live)
    if not looks:
        L, live = cholesky_dropping_(equilibrated_(gram, inverse), live, shift, least=0.5)
    else:
        # A shift only makes more of what is left. So if enough of all columns is left without it, none is dropped.
        L = cholesky_(equilibrated_(gram.clone(), inverse), 0.0)
        if bool(is_sound(L).all()):
            return Factor(L, norm, live, torch.linalg.diagonal(L))
        live = live & (torch.linalg.diagonal(cholesky_(equilibrated_(gram.clone(), inverse), shift)) > 0.5)
        L = cholesky_(equilibrated_(gram, inverse_row(norm, live)), 0.0)
    sound = is_sound(L)
    torch.where(sound[:, None, None], L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device), out=L)
    return Factor(L, norm, live & sound[:, None], torch.linalg.diagonal(L))


def needs_no_more(gram: Tensor, residual: Tensor, relative_noise: Tensor) -> bool:
    """Return whether columns become orthonormal in one more pass, and none of them may be noise.

    Args:
        gram: (b, r, r). What is below the diagonal is not read.
        residual: how much was left of each unit column in the first pass, (b, r).
        relative_noise: how much of it is noise, (b, r).
    """
    # In the Frobenius norm, they differ from the identity by less than 0.1.
    diagonal = torch.linalg.diagonal(gram)
    off = axis_norms(gram.triu(1), dim=(-2, -1)).square()
    distance = 2 * off + (diagonal - 1).square().sum(-1)
    return bool((distance < 1e-2).all()) and bool((residual > 2 * relative_noise).all())
