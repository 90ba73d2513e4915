"""The algorithms in float64, one matrix at a time, as plainly as the formulas."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A direction smaller than this, relative to the matrix, is rounding noise: far above what rounding to the dtype
# under test leaves, far below anything that the tests' gradients hold.
NOISE = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}


def gram_schmidt(B: Tensor, noise: float) -> Tensor:
    """Orthonormalize the columns one by one; a column that depends on those before it becomes zero."""
    P = torch.zeros_like(B)
    for j in range(B.shape[1]):
        v = B[:, j].clone()
        for _ in range(3):  # again, against what rounding left in
            v -= P @ (P.T @ v)
        if v.norm() > noise * B.norm():
            P[:, j] = v / v.norm()
    return P


def unit_columns(R: Tensor, noise: float) -> Tensor:
    Q = torch.zeros_like(R)
    for j in range(R.shape[1]):
        if R[:, j].norm() > noise * R.norm():
            Q[:, j] = R[:, j] / R[:, j].norm()
    return Q


def lr_factor(kind: str, m: int, n: int) -> float:
    if kind == "spectral_unclamped":
        return math.sqrt(m / n)
    if kind == "original":
        return math.sqrt(max(1, m / n))
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(m, n))
    assert kind == "none"
    return 1.0


@dataclass
class Dion:
    """Dion on one matrix."""

    X: Tensor
    Q: Tensor
    lr: float = 0.01
    momentum: float = 0.95
    weight_decay: float = 0.01
    lr_scale: str = "spectral_unclamped"
    right_factor: str = "normalize"
    orthonormal_side: str = "short"
    power_iterations: int = 1
    maximize: bool = False

    def __post_init__(self) -> None:
        self.noise = NOISE[self.X.dtype]
        self.X, self.Q = self.X.double().clone(), self.Q.double().clone()
        self.M = torch.zeros_like(self.X)

    def step(self, G: Tensor) -> None:
        m, n = self.X.shape
        self.M += -G.double() if self.maximize else G.double()
        columns = m > n if self.orthonormal_side == "short" else m < n
        M = self.M.T if columns else self.M
        Q = self.Q
        for _ in range(self.power_iterations):
            P = gram_schmidt(M @ Q, self.noise)
            R = M.T @ P
            found = unit_columns(R, self.noise) if self.right_factor == "normalize" else gram_schmidt(R, self.noise)
            live = found.norm(dim=0) > 0
            Q = torch.where(live, found, Q)
            P = torch.where(live, P, 0)
        M -= (1 - self.momentum) * P @ (M.T @ P).T
        self.Q = Q
        update = P @ Q.T
        update = update.T if columns else update
        self.X *= 1 - self.lr * self.weight_decay
        self.X -= self.lr * lr_factor(self.lr_scale, m, n) * update


@dataclass
class Lion:
    """Lion on one tensor."""

    X: Tensor
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    maximize: bool = False

    def __post_init__(self) -> None:
        self.X = self.X.double().clone()
        self.M = torch.zeros_like(self.X)

    def step(self, G: Tensor) -> None:
        G = -G.double() if self.maximize else G.double()
        beta1, beta2 = self.betas
        self.X *= 1 - self.lr * self.weight_decay
        self.X -= self.lr * torch.sign(beta1 * self.M + (1 - beta1) * G)
        self.M = beta2 * self.M + (1 - beta2) * G
