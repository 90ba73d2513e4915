"""The rules as a user would write them: one matrix after the other, with what torch.linalg offers.

Their steps are those of `orthon.testing.references`, in the dtype of the weights.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthon.algorithms import RULES, Entry
from orthon.testing.factors import Factors
from orthon.testing.references import OF_MATRICES, State

# Of Keller Jordan's iteration, kellerjordan.github.io/posts/muon.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Plain:
    """Polar factors by Newton-Schulz in bfloat16, and bases by a QR decomposition."""

    def polar(self, U: Tensor) -> Tensor:
        """Return about the polar factor, in bfloat16."""
        X = U.bfloat16()
        X = X.mT if X.shape[0] > X.shape[1] else X
        X = X / (X.norm() + 1e-7)
        for _ in range(5):
            A = X @ X.mT
            X = _A * X + (_B * A + _C * A @ A) @ X
        result: Tensor = X.mT if U.shape[0] > U.shape[1] else X
        return result

    def orthonormalize(self, B: Tensor) -> Tensor:
        """Return the columns orthonormalized, in float32 in between."""
        Q, T = torch.linalg.qr(B.float())
        result: Tensor = (Q * torch.diagonal(T).sign()).to(B.dtype)
        return result

    def unit_columns(self, R: Tensor) -> Tensor:
        """Return the columns divided by their lengths."""
        Q: Tensor = R / torch.linalg.vector_norm(R, dim=0, dtype=torch.float32).to(R.dtype)
        return Q

    def polar_columns(self, R: Tensor) -> Tensor:
        """Return the polar factor by a singular value decomposition."""
        W, _, Vt = torch.linalg.svd(R.float(), full_matrices=False)
        result: Tensor = (W @ Vt).to(R.dtype)
        return result


class _Loop(torch.optim.Optimizer):
    """A step of a rule for each matrix. Options are the rule's, with its defaults."""

    rule: ClassVar[str]
    factors: ClassVar[Factors] = Plain()

    def __init__(self, params: Iterable[nn.Parameter], lr: float, **options: Any) -> None:
        defaults = {name: option.default for name, option in RULES[self.rule].options.items()}
        super().__init__(params, {**defaults, "lr": lr, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix."""
        assert closure is None
        for group in self.param_groups:
            for X in group["params"]:
                if X not in self.state:
                    self.state[X] = self._new_state(X, group)
                OF_MATRICES[self.rule](X, X.grad, self.state[X], group, self.factors)

    def _new_state(self, X: Tensor, group: dict[str, Any]) -> State:
        state: State = {}
        for key, entry in RULES[self.rule].keeps(tuple(X.shape), group).items():
            assert isinstance(entry, Entry)
            shape = X.shape if entry.side is None else (X.shape[entry.side], entry.width)
            drawn = torch.randn(shape, dtype=entry.dtype or X.dtype, device=X.device)
            state[key] = entry.std * drawn
        return state


class Dion(_Loop):
    """Dion with a QR decomposition, on the shorter side."""

    rule = "dion"


class Muon(_Loop):
    """Muon with Newton-Schulz in bfloat16."""

    rule = "muon"


class NorMuon(_Loop):
    """Muon with second moments of rows."""

    rule = "normuon"


class Dion2(_Loop):
    """Dion2, on the shorter side."""

    rule = "dion2"


class Dion3(_Loop):
    """Dion2 with second moments of rows."""

    rule = "dion3"
