"""One step of each rule in float64, on one matrix, as plainly as the formulas.

Polar factors are approximations by a few iterations, so that the reference makes the same iterations, exactly.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from orthon.linalg.polynomials import NEWTON_SCHULZ, POLAR_EXPRESS, Polynomial

State = Mapping[str, Any]
Options = Mapping[str, Any]
Polar = Callable[[Tensor], Tensor]


def step(rule: str, X: Tensor, G: Tensor, state: State, group: Options, polar: Polar) -> Tensor:
    """Return the weight after a step.

    Args:
        rule: its name.
        X: the weight before, (m, n), in float64.
        G: its gradient, in float64.
        state: before the step, as the optimizer has it, in its dtype.
        group: the options.
        polar: finds polar factors.

    Raises:
        ValueError: for a rule without reference.
    """
    if rule not in _UPDATES:
        raise ValueError(f"rule should be one of {', '.join(_UPDATES)}, but is {rule!r}")
    decayed = (1 - group["lr"] * group["weight_decay"]) * X
    result: Tensor = decayed - group["lr"] * _UPDATES[rule](X, G, state, group, polar)
    return result


def polar_express(U: Tensor, steps: int = 5) -> Tensor:
    """Return what the Polar Express makes of U, scaled by a bound of its norm: ‖(UᵀU)²‖ to the power of 1/4."""
    gram = U @ U.mT if U.shape[0] <= U.shape[1] else U.mT @ U
    return _iterated(U / torch.linalg.matrix_norm(gram @ gram) ** 0.25, POLAR_EXPRESS[:steps])


def newton_schulz(U: Tensor, steps: int = 5) -> Tensor:
    """Return what Jordan's polynomial makes of U, scaled by its Frobenius norm."""
    return _iterated(U / torch.linalg.matrix_norm(U), (NEWTON_SCHULZ,) * steps)


def _iterated(X: Tensor, polynomials: tuple[Polynomial, ...]) -> Tensor:
    flat = X if X.shape[0] <= X.shape[1] else X.mT
    for a, b, c in polynomials:
        gram = flat @ flat.mT
        flat = a * flat + (b * gram + c * gram @ gram) @ flat
    return flat if X.shape[0] <= X.shape[1] else flat.mT


def _dion(X: Tensor, G: Tensor, state: State, group: Options, _: Polar) -> Tensor:  # noqa: ARG001
    m, n = X.shape
    M = _sum(state["momentum"], G)
    M = M.mT if m > n else M
    P = torch.linalg.qr(M @ state["Q"].double()).Q
    R = M.mT @ P
    update = P @ (R / R.norm(dim=0)).mT
    scaled: Tensor = math.sqrt(m / n) * (update.mT if m > n else update)
    return scaled


def _muon(X: Tensor, G: Tensor, state: State, group: Options, polar: Polar) -> Tensor:
    m, n = X.shape
    if "momentum_buffer" in state:  # torch's, an exponential average, with its own shape factor
        M = torch.lerp(G, state["momentum_buffer"].double(), group["momentum"])
        return math.sqrt(max(1, m / n)) * polar(torch.lerp(G, M, group["momentum"]))
    M = group["momentum"] * state["momentum"].double() + G
    return math.sqrt(m / n) * polar(G + group["momentum"] * M)


def _normuon(X: Tensor, G: Tensor, state: State, group: Options, polar: Polar) -> Tensor:
    return _normalized(_muon(X, G, state, group, polar), state["row_moment"].double(), X.shape)


def _dion2(X: Tensor, G: Tensor, state: State, group: Options, polar: Polar) -> Tensor:
    return _selected(X, G, state, group, polar, normalized=False)


def _dion3(X: Tensor, G: Tensor, state: State, group: Options, polar: Polar) -> Tensor:
    return _selected(X, G, state, group, polar, normalized=True)


def _selected(X: Tensor, G: Tensor, state: State, group: Options, polar: Polar, *, normalized: bool) -> Tensor:
    m, n = X.shape
    M = _sum(state["momentum"], G)
    M = M.mT if m > n else M
    rows = M.abs().sum(dim=1).topk(math.ceil(group["fraction"] * len(M))).indices
    O = math.sqrt(m / n) * polar(M[rows])
    if normalized:
        moment = state["row_moment"].double()
        O = _normalized(O.mT, moment, (m, n)).mT if m > n else _normalized(O, moment[rows], (m, n))
    update = torch.zeros_like(M)
    update[rows] = O
    return update.mT if m > n else update


def _normalized(O: Tensor, moment: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return O with its rows brought to one size; O has a shape factor, which the moments do not see."""
    squares = O.square().mean(dim=1, keepdim=True) * shape[1] / shape[0]
    N = O / (0.95 * moment + 0.05 * squares).sqrt()
    result: Tensor = N * O.norm() / N.norm()
    return result


def _adamw(X: Tensor, G: Tensor, state: State, group: Options, _: Polar) -> Tensor:  # noqa: ARG001
    beta1, beta2 = group["betas"]
    count = float(state["step"]) + 1
    M = torch.lerp(G, state["exp_avg"].double(), beta1)
    V = torch.lerp(G.square(), state["exp_avg_sq"].double(), beta2)
    result: Tensor = M / (1 - beta1**count) / ((V / (1 - beta2**count)).sqrt() + group["eps"])
    return result


def _sum(momentum: Tensor, G: Tensor) -> Tensor:
    """Return M + G rounded as it is stored: which rows are the largest depends on it."""
    return (momentum + G.to(momentum.dtype)).double()


_UPDATES = {"dion": _dion, "muon": _muon, "normuon": _normuon, "dion2": _dion2, "dion3": _dion3, "adamw": _adamw}
