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


def polar(U: Tensor, noise: float) -> Tensor:
    """Return W Vᵀ of U = W S Vᵀ, over the directions that U has; rows and columns of zeros are none."""
    O = torch.zeros_like(U)
    rows, cols = U.any(dim=1).nonzero().flatten(), U.any(dim=0).nonzero().flatten()
    if len(rows) > 0:
        W, S, Vt = torch.linalg.svd(U[rows][:, cols] / U.abs().max(), full_matrices=False)
        O[rows[:, None], cols] = W @ torch.diag((noise * S[0] < S).to(U.dtype)) @ Vt
    return O


def decayed(X: Tensor, direction: Tensor, rate: float, cautious: bool) -> Tensor:
    """Return X after weight decay; if cautious, of what `direction`, about to be subtracted, does not make larger."""
    return X - rate * torch.where(direction * X >= 0, X, 0) if cautious else (1 - rate) * X


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
    cautious_weight_decay: bool = False

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
        self.X = decayed(self.X, update, self.lr * self.weight_decay, self.cautious_weight_decay)
        self.X -= self.lr * lr_factor(self.lr_scale, m, n) * update


@dataclass
class Muon:
    """Muon on one matrix, its polar factor exact."""

    X: Tensor
    lr: float = 0.01
    momentum: float = 0.95
    nesterov: bool = True
    ema: bool = False
    weight_decay: float = 0.01
    lr_scale: str = "spectral_unclamped"
    maximize: bool = False
    cautious_weight_decay: bool = False

    def __post_init__(self) -> None:
        self.noise = NOISE[self.X.dtype]
        self.X = self.X.double().clone()
        self.M = torch.zeros_like(self.X)

    def normalize(self, O: Tensor) -> Tensor:
        return O

    def step(self, G: Tensor) -> None:
        G = -G.double() if self.maximize else G.double()
        if self.ema:
            G = (1 - self.momentum) * G
        self.M = self.momentum * self.M + G
        U = G + self.momentum * self.M if self.nesterov else self.M
        O = self.normalize(polar(U, self.noise))
        self.X = decayed(self.X, O, self.lr * self.weight_decay, self.cautious_weight_decay)
        self.X -= self.lr * lr_factor(self.lr_scale, *self.X.shape) * O


@dataclass
class NorMuon(Muon):
    """NorMuon on one matrix."""

    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.v = torch.zeros(len(self.X), 1, dtype=torch.float64)

    def normalize(self, O: Tensor) -> Tensor:
        self.v = self.beta2 * self.v + (1 - self.beta2) * O.square().mean(dim=1, keepdim=True)
        N = O / (self.v.sqrt() + self.eps)
        return N * O.norm() / N.norm() if O.any() else O


@dataclass
class Dion2:
    """Dion2 on one matrix, its polar factor exact.

    `rows`, for each step, are those to select (columns of a tall matrix), instead of those of largest ℓ1 norm.
    """

    X: Tensor
    lr: float = 0.01
    fraction: float = 0.25
    momentum: float = 0.95
    weight_decay: float = 0.01
    lr_scale: str = "spectral_unclamped"
    lr_scale_by_fraction: bool = False
    maximize: bool = False
    cautious_weight_decay: bool = False
    rows: list[list[int]] | None = None

    def __post_init__(self) -> None:
        self.noise = NOISE[self.X.dtype]
        self.X = self.X.double().clone()
        self.M = torch.zeros_like(self.X)
        self.selected: list[list[int]] = []

    def normalize(self, O: Tensor, rows: list[int]) -> Tensor:  # noqa: ARG002
        return O

    def step(self, G: Tensor) -> None:
        m, n = self.X.shape
        columns = m > n
        self.M += -G.double() if self.maximize else G.double()
        M = self.M.T if columns else self.M  # the same storage
        sizes = M.abs().sum(dim=1).float().tolist()  # what float32 cannot tell apart is equal
        k = math.ceil(self.fraction * len(M))
        S = sorted(sorted(range(len(M)), key=lambda i: (-sizes[i], i))[:k])
        if self.rows is not None:
            S = self.rows[len(self.selected)]
            assert len(S) == k
        self.selected.append(S)
        O = polar(M[S], self.noise)
        M[S] *= self.momentum
        O = self.normalize(O.T, list(range(m))).T if columns else self.normalize(O, S)
        update = torch.zeros_like(M)
        update[S] = O
        update = update.T if columns else update
        self.X = decayed(self.X, update, self.lr * self.weight_decay, self.cautious_weight_decay)
        lr = self.lr / math.sqrt(self.fraction) if self.lr_scale_by_fraction else self.lr
        self.X -= lr * lr_factor(self.lr_scale, m, n) * update


@dataclass
class Dion3(Dion2):
    """Dion3 on one matrix: rows that are not selected keep their moment; of selected columns, all rows have one."""

    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.v = torch.zeros(len(self.X), 1, dtype=torch.float64)

    def normalize(self, O: Tensor, rows: list[int]) -> Tensor:
        self.v[rows] = self.beta2 * self.v[rows] + (1 - self.beta2) * O.square().mean(dim=1, keepdim=True)
        N = O / (self.v[rows].sqrt() + self.eps)
        return N * O.norm() / N.norm() if O.any() else O


@dataclass
class AdamW:
    """AdamW on one tensor."""

    X: Tensor
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    maximize: bool = False
    cautious_weight_decay: bool = False

    def __post_init__(self) -> None:
        self.X = self.X.double().clone()
        self.M, self.V, self.t = torch.zeros_like(self.X), torch.zeros_like(self.X), 0

    def step(self, G: Tensor) -> None:
        G = -G.double() if self.maximize else G.double()
        beta1, beta2 = self.betas
        self.t += 1
        self.M = beta1 * self.M + (1 - beta1) * G
        self.V = beta2 * self.V + (1 - beta2) * G.square()
        direction = self.M / (1 - beta1**self.t) / ((self.V / (1 - beta2**self.t)).sqrt() + self.eps)
        self.X = decayed(self.X, direction, self.lr * self.weight_decay, self.cautious_weight_decay)
        self.X -= self.lr * direction


@dataclass
class Lion:
    """Lion on one tensor."""

    X: Tensor
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    maximize: bool = False
    cautious_weight_decay: bool = False

    def __post_init__(self) -> None:
        self.X = self.X.double().clone()
        self.M = torch.zeros_like(self.X)

    def step(self, G: Tensor) -> None:
        G = -G.double() if self.maximize else G.double()
        beta1, beta2 = self.betas
        direction = torch.sign(beta1 * self.M + (1 - beta1) * G)
        self.X = decayed(self.X, direction, self.lr * self.weight_decay, self.cautious_weight_decay)
        self.X -= self.lr * direction
        self.M = beta2 * self.M + (1 - beta2) * G
