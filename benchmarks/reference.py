"""One step of a rule in float64, for the state that an optimizer has, by `orthon.testing.references`.

Polar factors are approximations by a few iterations, so that the reference makes the same iterations, exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms import RULES
from orthon.linalg.polynomials import NEWTON_SCHULZ, POLAR_EXPRESS, Polynomial
from orthon.testing import references
from orthon.testing.factors import Factors


def step(
    rule: str, X: Tensor, G: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], factors: Factors
) -> Tensor:
    """Return the weight after a step.

    Args:
        rule: its name.
        X: the weight before, (m, n), in float64.
        G: its gradient, in float64.
        state: before the step, as the optimizer has it, in its dtype.
        group: the options; those that it lacks are the rule's defaults.
        factors: finds polar factors and bases.

    Raises:
        ValueError: for a rule without reference.
    """
    if rule not in references.REFERENCES:
        raise ValueError(f"rule should be one of {', '.join(references.REFERENCES)}, but is {rule!r}")
    options = {**{name: option.default for name, option in RULES[rule].options.items()}, **group}
    exact = {key: value.double().clone() for key, value in state.items() if isinstance(value, Tensor)}
    if "momentum_buffer" in exact:  # torch's Muon: an exponential average, with a shape factor of its own
        exact["momentum"] = exact.pop("momentum_buffer")
        options.update(ema=True, adjust_lr_fn="original")
    if rule in ("dion", "dion2", "dion3"):
        # Their sum M + G as it is stored: which rows are the largest depends on how it is rounded.
        fades = rule == "dion" and options["residual_momentum"] is None
        before, stored = exact["momentum"] * (options["momentum"] if fades else 1), state["momentum"]
        G = (before + G).to(stored.dtype).double() - before
    if rule == "adamw":
        return references.adamw(X.clone(), G, exact, options)
    return references.OF_MATRICES[rule](X.clone(), G, exact, options, factors)


@dataclass(frozen=True)
class Iterated:
    """Factors that are approximated as the contenders do.

    Attributes:
        newton_schulz: by Jordan's polynomial of a matrix that is scaled by its Frobenius norm. Else by the Polar
            Express, scaled by a bound of its norm: ‖(UᵀU)²‖ to the power of 1/4.
        steps: of the iteration.
    """

    newton_schulz: bool
    steps: int = 5

    def polar(self, U: Tensor) -> Tensor:
        """Return about the polar factor."""
        if self.newton_schulz:
            return _iterated(U / torch.linalg.matrix_norm(U), (NEWTON_SCHULZ,) * self.steps)
        gram = U @ U.mT if U.shape[0] <= U.shape[1] else U.mT @ U
        return _iterated(U / torch.linalg.matrix_norm(gram @ gram) ** 0.25, POLAR_EXPRESS[: self.steps])

    def orthonormalize(self, B: Tensor) -> Tensor:
        """Return the columns orthonormalized by a QR decomposition."""
        Q, T = torch.linalg.qr(B)
        result: Tensor = Q * torch.diagonal(T).sign()
        return result

    def unit_columns(self, R: Tensor) -> Tensor:
        """Return the columns divided by their lengths."""
        Q: Tensor = R / R.norm(dim=0)
        return Q

    def polar_columns(self, R: Tensor) -> Tensor:
        """Return the polar factor by a singular value decomposition."""
        W, _, Vt = torch.linalg.svd(R, full_matrices=False)
        Q: Tensor = W @ Vt
        return Q


def _iterated(X: Tensor, polynomials: tuple[Polynomial, ...]) -> Tensor:
    flat = X if X.shape[0] <= X.shape[1] else X.mT
    for a, b, c in polynomials:
        gram = flat @ flat.mT
        flat = a * flat + (b * gram + c * gram @ gram) @ flat
    return flat if X.shape[0] <= X.shape[1] else flat.mT
