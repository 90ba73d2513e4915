"""Rules of packages that are not installed, from their papers, on states in the layout of each package.

They are in float64 with exact polar factors. Each takes the weight, the state, which it updates, the group and the
gradient, and returns the new weight.
"""

import math
from typing import Any

import torch
from torch import Tensor


def polar(U: Tensor) -> Tensor:
    W, _, Vt = torch.linalg.svd(U, full_matrices=False)
    return W @ Vt


def each_polar(U: Tensor, flatten: bool) -> Tensor:
    """Return the polar factors of the matrices in the last two dims, or of a flattened weight."""
    return polar(U.flatten(1) if flatten else U).reshape(U.shape)


def rms_scale(adjust_lr: str | None, m: int, n: int) -> float:
    return {"spectral_norm": math.sqrt(m / n), "rms_norm": 0.2 * math.sqrt(max(m, n)), None: 1.0}[adjust_lr]


def average(group: dict[str, Any], key: str, state: dict[str, Any], entry: str, G: Tensor) -> Tensor:
    state[entry] = group[key] * state.get(entry, torch.zeros_like(G)) + (1 - group[key]) * G
    return state[entry]


def keller_muon(X: Tensor, state: dict[str, Any], group: dict[str, Any], G: Tensor) -> Tensor:
    m, n = X.shape[-2:]
    M, mu = average(group, "momentum", state, "momentum_buffer", G), group["momentum"]
    decayed = (1 - group["lr"] * group["weight_decay"]) * X
    return decayed - group["lr"] * math.sqrt(max(1, m / n)) * each_polar((1 - mu) * G + mu * M, X.ndim == 4)


def adam(X: Tensor, first: Tensor, second: Tensor, t: int, group: dict[str, Any], decay: str, eps: float) -> Tensor:
    direction = first / (1 - group["betas"][0] ** t) / ((second / (1 - group["betas"][1] ** t)).sqrt() + eps)
    return (1 - group["lr"] * group[decay]) * X - group["lr"] * direction


def moments(state: dict[str, Any], names: tuple[str, str], betas: tuple[float, float], G: Tensor) -> None:
    for name, beta, value in zip(names, betas, (G, G.square()), strict=True):
        state[name] = beta * state.get(name, torch.zeros_like(G)) + (1 - beta) * value


def keller_adam(X: Tensor, state: dict[str, Any], group: dict[str, Any], G: Tensor) -> Tensor:
    state["step"] = state.get("step", 0) + 1
    moments(state, ("exp_avg", "exp_avg_sq"), group["betas"], G)
    return adam(X, state["exp_avg"], state["exp_avg_sq"], state["step"], group, "weight_decay", group["eps"])


def moonlight(X: Tensor, state: dict[str, Any], group: dict[str, Any], G: Tensor) -> Tensor:
    if not state["use_muon"]:
        state["step"] = t = state.get("step", 0) + 1
        moments(state, ("moment1", "moment2"), group["adamw_betas"], G)
        eps = group["adamw_eps"] / math.sqrt(1 - group["adamw_betas"][1] ** t)  # before the bias correction
        betas = {**group, "betas": group["adamw_betas"]}
        return adam(X, state["moment1"], state["moment2"], t, betas, "wd", eps)
    mu = group["momentum"]
    state["momentum_buffer"] = M = mu * state.get("momentum_buffer", 0 * G) + G
    U = G + mu * M if group["nesterov"] else M
    return (1 - group["lr"] * group["wd"]) * X - group["lr"] * 0.2 * math.sqrt(max(X.shape)) * polar(U)


def microsoft(X: Tensor, state: dict[str, Any], group: dict[str, Any], G: Tensor) -> Tensor:
    """Make a step of one of the rules; the group's "step" counts this one already."""
    kind, M = group["algorithm"], state.setdefault("momentum", torch.zeros_like(X))
    heads, sizes, flat = group.get("num_heads"), group.get("split_sizes"), group.get("flatten") and X.ndim > 2
    if kind != "adamw" and (heads or sizes or flat or X.ndim > 2):
        return in_parts(X, state, group, G)
    lr, decay = group["lr"], group["lr"] * group["weight_decay"]
    scale = lr * rms_scale(group.get("adjust_lr", "spectral_norm"), *X.shape) if X.ndim == 2 else lr
    if kind == "adamw":
        betas, t = (group["beta1"], group["beta2"]), group["step"]
        moments(state, ("momentum", "variance"), betas, G)
        options = {**group, "betas": betas}
        return adam(X, state["momentum"], state["variance"], t, options, "weight_decay", group["epsilon"])
    if kind == "lion":
        direction = torch.sign(group["beta1"] * M + (1 - group["beta1"]) * G)
        state["momentum"] = group["beta2"] * M + (1 - group["beta2"]) * G
        return (1 - decay) * X - lr * direction
    if kind == "dion":
        transposed = len(state["Q"]) == len(X) and (len(X) != X.shape[1])
        A = (M + G).T if transposed else M + G
        P = torch.linalg.qr(A @ state["Q"]).Q
        R = A.T @ P
        A = A - (1 - group["mu"]) * P @ R.T
        state["momentum"], state["Q"] = (A.T if transposed else A).contiguous(), R / R.norm(dim=0)
        update = P @ state["Q"].T
        return (1 - decay) * X - scale * (update.T if transposed else update)
    if kind in ("muon", "normuon"):
        state["momentum"] = M = group["mu"] * M + G
        O = polar(G + group["mu"] * M if group["nesterov"] else M)
        if kind == "normuon":
            O = by_rows(O, state, group, slice(None), len(X))
        if group.get("cautious_wd"):
            return X - decay * torch.where(O * X >= 0, X, 0) - scale * O
        return (1 - decay) * X - scale * O
    columns = kind == "dion2" and len(X) > X.shape[1]
    A = ((M + G).T if columns else M + G).clone()
    S = A.abs().sum(dim=1).topk(math.ceil(group["fraction"] * len(A))).indices
    O = polar(A[S])
    if kind == "nordion2":
        O = by_rows(O, state, group, S, len(X))
    A[S] *= group["ef_decay" if kind == "dion2" else "mu"]
    update = torch.zeros_like(A)
    update[S] = O
    state["momentum"] = (A.T if columns else A).contiguous()
    return (1 - decay) * X - scale * (update.T if columns else update)


def in_parts(X: Tensor, state: dict[str, Any], group: dict[str, Any], G: Tensor) -> Tensor:
    """Make a step on each of the matrices in a parameter, as if it were one of its own."""
    own = {k: v for k, v in group.items() if k not in ("num_heads", "split_sizes", "flatten")}
    flat, heads = group.get("flatten"), group.get("num_heads")
    sizes = [len(X) // heads] * heads if heads else group.get("split_sizes")

    def parts(whole: Tensor) -> list[Tensor]:
        if flat:
            return [whole.flatten(1)]
        return list(whole.split(sizes)) if sizes else list(whole.flatten(0, -3))

    if group["algorithm"] in ("normuon", "nordion2"):
        state.setdefault("variance_neuron", torch.zeros_like(X[..., :1]))
    states = [
        dict(zip(state, values, strict=True))
        for values in zip(*(parts(value) for value in state.values()), strict=True)
    ]
    stepped = [microsoft(*args) for args in zip(parts(X), states, [own] * len(states), parts(G), strict=True)]
    for key in state:
        values = [of_part[key] for of_part in states]
        state[key] = (torch.cat(values) if sizes else torch.stack(values)).reshape(state[key].shape)
    return (torch.cat(stepped) if sizes else torch.stack(stepped)).reshape(X.shape)


def by_rows(O: Tensor, state: dict[str, Any], group: dict[str, Any], S: Any, m: int) -> Tensor:
    v = state.setdefault("variance_neuron", O.new_zeros(m, 1))
    v[S] = group["muon_beta2"] * v[S] + (1 - group["muon_beta2"]) * O.square().mean(dim=1, keepdim=True)
    N = O / (v[S].sqrt() + 1e-8)
    return N * O.norm() / N.norm()
