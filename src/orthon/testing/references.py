"""Orthon's rules as plainly as their formulas, one parameter at a time, in any dtype.

Each function makes one step: it takes the weight X, its gradient G, the state, which it updates, and the options of the
param group, and returns the new weight. It may change X in place. The state has the names and shapes of the
optimizer's.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from orthon.algorithms.options import Group
from orthon.algorithms.tail import MOST
from orthon.testing.factors import EXACT, Factors

State = dict[str, Tensor]
Reference = Callable[[Tensor, Tensor, State, Group], Tensor]


class MatrixReference(Protocol):
    """A reference that takes the way to find factors besides."""

    def __call__(self, X: Tensor, G: Tensor, state: State, group: Group, factors: Factors = EXACT) -> Tensor:
        """Make one step on one matrix."""


def lr_factor(adjust_lr_fn: str, m: int, n: int) -> float:
    """Return what lr is multiplied by for a matrix of this shape."""
    if adjust_lr_fn == "spectral_unclamped":
        return math.sqrt(m / n)
    if adjust_lr_fn == "original":
        return math.sqrt(max(1, m / n))
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(m, n))
    assert adjust_lr_fn == "none"
    return 1.0


def descend(X: Tensor, direction: Tensor, factor: float, group: Group) -> Tensor:
    """Return X after weight decay and a step of lr·factor against a direction.

    Cautious decay is of what `direction` does not make larger.
    """
    lr = group["lr"]
    rate = lr * group["weight_decay"]
    if group["cautious_weight_decay"]:
        X.sub_(rate * torch.where(direction * X >= 0, X, 0))
    else:
        X.mul_(1 - rate)
    return X.sub_(direction, alpha=float(lr * factor))


def dion(X: Tensor, G: Tensor, state: State, group: Group, factors: Factors = EXACT) -> Tensor:
    """Make a step of Dion on a matrix with momentum M and right factor Q."""
    m, n = X.shape
    M, Q, G = state["momentum"], state["Q"], _uphill(G, group)
    momentum, residual = group["momentum"], group["residual_momentum"]
    M.mul_(momentum if residual is None else 1).add_(G)
    columns = m > n if group["orthonormal_side"] == "short" else m < n
    A = M.mT if columns else M  # the same storage
    for _ in range(group["power_iterations"]):
        P = factors.orthonormalize(A @ Q)
        R = A.mT @ P
        make: dict[str, Callable[[Tensor], Tensor]] = {
            "orthonormalize": factors.orthonormalize,
            "polar": partial(_polar_columns, factors),
        }
        found = make.get(group["right_factor"], factors.unit_columns)(R)
        live = found.any(dim=0)
        Q = torch.where(live, found, Q)
        P, R = torch.where(live, P, 0), torch.where(live, R, 0)
    state["Q"] = Q
    update = P @ Q.mT + _tail(A, P, R, group["tail"])
    if residual is not None:
        A.copy_(residual * A - (residual - momentum) * (P @ R.mT))
    elif group["nesterov"]:
        M.sub_(G, alpha=1 / (1 + momentum))
    return descend(X, update.mT if columns else update, lr_factor(group["adjust_lr_fn"], m, n), group)


# Columns of what is left out that are shorter than this, beside those of the momentum, are rounding noise.
_SHORTEST = {torch.float64: 1e-6, torch.float32: 3e-3, torch.bfloat16: 3e-2, torch.float16: 3e-3}


def _tail(A: Tensor, P: Tensor, R: Tensor, tail: float) -> Tensor:
    """Return what P leaves out of A, with columns of one length."""
    E, r = A - P @ R.mT, P.shape[1]
    lengths, live = E.norm(dim=0), R.any(dim=0)
    if not live.all() or r >= len(A):
        return torch.zeros_like(A)
    is_noise = (lengths <= _SHORTEST[A.dtype] * A.norm(dim=0)) | (lengths <= _SHORTEST[A.dtype] ** 2 * A.norm())
    inverse = torch.where(is_noise, 0, 1 / lengths)
    shortest = (R * inverse[:, None]).norm(dim=0).min()
    length = tail * math.sqrt((len(A) - r) / A.shape[1])
    return E * inverse * (min(length, float(MOST / shortest)) if shortest > 0 else length)


def _polar_columns(factors: Factors, R: Tensor) -> Tensor:
    """Return the polar factor of the columns of R that do not depend on those before them; the others are zero."""
    Q, live = torch.zeros_like(R), factors.orthonormalize(R).any(dim=0)
    Q[:, live] = factors.polar(R[:, live]).to(Q.dtype)
    return Q


def muon(X: Tensor, G: Tensor, state: State, group: Group, factors: Factors = EXACT) -> Tensor:
    """Make a step of Muon on a matrix."""
    return descend(X, _polar_momentum(G, state, group, factors), lr_factor(group["adjust_lr_fn"], *X.shape), group)


def normuon(X: Tensor, G: Tensor, state: State, group: Group, factors: Factors = EXACT) -> Tensor:
    """Make a step of NorMuon on a matrix."""
    O = _of_one_size(_polar_momentum(G, state, group, factors), state["row_moment"], group)
    return descend(X, O, lr_factor(group["adjust_lr_fn"], *X.shape), group)


def _polar_momentum(G: Tensor, state: State, group: Group, factors: Factors) -> Tensor:
    momentum, G = group["momentum"], _uphill(G, group)
    if group["ema"]:
        G = (1 - momentum) * G
    M = state["momentum"].mul_(momentum).add_(G)
    return factors.polar(G.add(M, alpha=momentum) if group["nesterov"] else M)


# Chooses k rows of a matrix: their indices.
Select = Callable[[Tensor, int], Tensor]


def largest_rows(A: Tensor, k: int) -> Tensor:
    """Return the rows of largest ℓ1 norm, in order. Of those that float32 cannot tell apart, the first are taken."""
    norms = torch.linalg.vector_norm(A, 1, dim=1, dtype=torch.promote_types(A.dtype, torch.float32)).float()
    rows: Tensor = norms.sort(descending=True, stable=True).indices[:k].sort().values
    return rows


def dion2(
    X: Tensor, G: Tensor, state: State, group: Group, factors: Factors = EXACT, select: Select = largest_rows
) -> Tensor:
    """Make a step of Dion2 on a matrix. `select` chooses rows, or columns in their place."""
    return _selected(X, G, state, group, factors, select, lambda O, _: O)


def dion3(
    X: Tensor, G: Tensor, state: State, group: Group, factors: Factors = EXACT, select: Select = largest_rows
) -> Tensor:
    """Make a step of Dion3 on a matrix: rows that are not selected keep their moment; of columns, all rows have one."""
    columns, moment = _selects_columns(X, group), state["row_moment"]

    def normalize(O: Tensor, rows: Tensor) -> Tensor:
        if columns:
            return _of_one_size(O.mT, moment, group).mT
        chosen = moment[rows]
        O = _of_one_size(O, chosen, group)
        moment[rows] = chosen
        return O

    return _selected(X, G, state, group, factors, select, normalize)


def _selected(
    X: Tensor,
    G: Tensor,
    state: State,
    group: Group,
    factors: Factors,
    select: Select,
    normalize: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    columns = _selects_columns(X, group)
    M = state["momentum"].add_(_uphill(G, group))
    A = M.mT if columns else M  # the same storage
    rows = select(A, math.ceil(group["fraction"] * len(A)))
    O = normalize(factors.polar(A[rows]), rows)
    A[rows] *= group["momentum"]
    update = torch.zeros_like(A, dtype=O.dtype)
    update[rows] = O
    factor = lr_factor(group["adjust_lr_fn"], *X.shape)
    if group["lr_scale_by_fraction"]:
        factor /= math.sqrt(group["fraction"])
    return descend(X, update.mT if columns else update, factor, group)


def _selects_columns(X: Tensor, group: Group) -> bool:
    return bool(group["selection_side"] == "short" and X.shape[0] > X.shape[1])


def _of_one_size(O: Tensor, moment: Tensor, group: Group) -> Tensor:
    """Return O with its rows divided by their root mean square over time, as long as before. Updates the moment."""
    O = O.to(torch.promote_types(O.dtype, torch.float32))
    moment.lerp_(O.square().mean(dim=1, keepdim=True).to(moment.dtype), 1 - group["beta2"])
    N = O / (moment.sqrt() + group["eps"])
    result: Tensor = N * (O.norm() / N.norm().clamp_min(torch.finfo(N.dtype).tiny))
    return result


def adamw(X: Tensor, G: Tensor, state: State, group: Group) -> Tensor:
    """Make a step of AdamW on a parameter of any shape."""
    G, (beta1, beta2) = _uphill(G, group), group["betas"]
    state["step"] += 1
    first = state["exp_avg"].lerp_(G, 1 - beta1)
    second = state["exp_avg_sq"].lerp_(G.square(), 1 - beta2)
    if group["amsgrad"]:
        second = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
    corrected = (second / (1 - beta2 ** state["step"])).sqrt()
    return descend(X, first / (1 - beta1 ** state["step"]) / (corrected + group["eps"]), 1.0, group)


def lion(X: Tensor, G: Tensor, state: State, group: Group) -> Tensor:
    """Make a step of Lion on a parameter of any shape."""
    G, (beta1, beta2) = _uphill(G, group), group["betas"]
    M = state["exp_avg"]
    X = descend(X, torch.sign(torch.lerp(G, M, beta1)), 1.0, group)
    M.lerp_(G, 1 - beta2)
    return X


def _uphill(G: Tensor, group: Group) -> Tensor:
    return -G if group["maximize"] else G


OF_MATRICES: dict[str, MatrixReference] = {
    "dion": dion,
    "muon": muon,
    "normuon": normuon,
    "dion2": dion2,
    "dion3": dion3,
}

REFERENCES: dict[str, Reference] = {**OF_MATRICES, "adamw": adamw, "lion": lion}
