"""The rules as a user would write them: one matrix after the other, with what torch.linalg offers.

They keep the same state as Orthon's rules, under the same names.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Of Keller Jordan's iteration, kellerjordan.github.io/posts/muon.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class _Loop(torch.optim.Optimizer):
    """A step that calls `update` for each matrix."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, **options: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.01, "momentum": 0.95, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix."""
        assert closure is None
        for group in self.param_groups:
            for X in group["params"]:
                m, n = X.shape
                update = self.update(X.grad, self.state[X], group)
                X.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * math.sqrt(m / n))

    def update(self, G: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return what to subtract, (m, n), before it is scaled."""
        raise NotImplementedError


class Dion(_Loop):
    """Dion with a QR decomposition, on the shorter side."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, *, rank_fraction: float) -> None:
        super().__init__(params, lr, rank_fraction=rank_fraction)

    def update(self, G: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return P Qᵀ."""
        short, long = sorted(G.shape)
        if not state:
            rank = math.ceil(group["rank_fraction"] * short)
            state["momentum"] = torch.zeros_like(G)
            state["Q"] = torch.randn(long, rank, dtype=G.dtype, device=G.device) / math.sqrt(long)
        state["momentum"].add_(G)
        tall = G.shape[0] > G.shape[1]
        M = state["momentum"].mT if tall else state["momentum"]
        P = torch.linalg.qr((M @ state["Q"]).float()).Q.to(M.dtype)
        R = M.mT @ P
        M.sub_(P @ R.mT, alpha=1 - group["momentum"])
        state["Q"] = R / torch.linalg.vector_norm(R, dim=0, dtype=torch.float32).to(R.dtype)
        update: Tensor = state["Q"] @ P.mT if tall else P @ state["Q"].mT
        return update


class Muon(_Loop):
    """Muon with Newton-Schulz in bfloat16."""

    def update(self, G: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return the polar factor of the momentum, one gradient ahead."""
        M = state.setdefault("momentum", torch.zeros_like(G))
        M.mul_(group["momentum"]).add_(G)
        return _newton_schulz(G.add(M, alpha=group["momentum"]))


class NorMuon(Muon):
    """Muon with second moments of rows."""

    def update(self, G: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return the polar factor with its rows brought to one size."""
        moment = state.setdefault("row_moment", torch.zeros(len(G), 1, device=G.device))
        return _normalize_rows(super().update(G, state, group), moment)


class Dion2(_Loop):
    """Dion2, on the shorter side."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, *, fraction: float) -> None:
        super().__init__(params, lr, fraction=fraction)

    def update(self, G: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return the polar factor of the largest rows, and zeros."""
        tall = G.shape[0] > G.shape[1]
        stored = state.setdefault("momentum", torch.zeros_like(G)).add_(G)
        M = stored.mT if tall else stored
        norms = torch.linalg.vector_norm(M, 1, dim=1, dtype=torch.float32)
        rows = norms.topk(math.ceil(group["fraction"] * len(M))).indices
        O = self.normalize(_newton_schulz(M[rows]), rows, tall, state, group)
        M[rows] *= group["momentum"]
        update = torch.zeros_like(M, dtype=O.dtype)
        update[rows] = O
        return update.mT if tall else update

    def normalize(self, O: Tensor, rows: Tensor, tall: bool, state: dict[str, Any], group: dict[str, Any]) -> Tensor:  # noqa: ARG002
        """Return the update of the rows as it is."""
        return O


class Dion3(Dion2):
    """Dion2 with second moments of rows."""

    def normalize(self, O: Tensor, rows: Tensor, tall: bool, state: dict[str, Any], group: dict[str, Any]) -> Tensor:  # noqa: ARG002
        """Return the update with its rows, or those of the weight, brought to one size."""
        height = O.shape[1] if tall else state["momentum"].shape[0]
        moments = state.setdefault("row_moment", torch.zeros(height, 1, device=O.device))
        if tall:
            return _normalize_rows(O.mT, moments).mT
        chosen = moments[rows]
        normalized = _normalize_rows(O, chosen)
        moments[rows] = chosen
        return normalized


def _newton_schulz(U: Tensor, steps: int = 5) -> Tensor:
    X = U.bfloat16()
    X = X.mT if X.shape[0] > X.shape[1] else X
    X = X / (X.norm() + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = _A * X + (_B * A + _C * A @ A) @ X
    result: Tensor = X.mT if U.shape[0] > U.shape[1] else X
    return result


def _normalize_rows(O: Tensor, moment: Tensor) -> Tensor:
    """Return O with its rows divided by their root mean square over time, as long as before; updates the moment."""
    O = O.float()
    moment.lerp_(O.square().mean(dim=1, keepdim=True), 0.05)
    N = O / (moment.sqrt() + 1e-8)
    result: Tensor = N * (O.norm() / N.norm())
    return result
