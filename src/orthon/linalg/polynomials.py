"""The odd polynomials that bring singular values to 1, step by step."""

import torch

Polynomial = tuple[float, float, float]  # a, b, c of a x + b x³ + c x⁵

# The best steps for singular values in [1e-3, 1], as scripts/polar_express.py computes and explains them.
POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.287212018145626, -23.595886519098826, 17.300387312530926),
    (4.107059111542201, -2.947849916737909, 0.5448431082926598),
    (3.9486908534822933, -2.908902115962947, 0.5518191394370131),
    (3.318419657370601, -2.488488024314874, 0.51004894012372),
    (2.3006520199548177, -1.6689039845747502, 0.4188073119525674),
    (1.8913014077873984, -1.2679958271945881, 0.37680408948524896),
    (1.8750014808442192, -1.2500016453814815, 0.37500016453818624),
    (1.875, -1.25, 0.375),
    (1.875, -1.25, 0.375),
    (1.875, -1.25, 0.375),
)

# Keller Jordan's (https://kellerjordan.github.io/posts/muon), also of torch.optim.Muon: the steepest at zero that
# keeps what it has raised between 0.7 and 1.2.
NEWTON_SCHULZ: Polynomial = (3.4445, -4.7750, 2.0315)

# What 16-bit rounding may add to a singular value in one step, as a factor: applied to the matrix itself, or composed
# with others on its Gram matrix. Above the interval for which it was made, a polynomial of the table soon grows
# without bound. Measured on matrices of 256 rows with many kinds of spectra; composed, 1.01 is too little.
SAFETY = 1.01
SAFETY_COMPOSED = 1.02


def polynomials(method: str, steps: int, dtype: torch.dtype, *, composed: bool) -> list[Polynomial]:
    """Return the polynomials of an iteration.

    Args:
        method: "polar_express" or "newton_schulz".
        steps: how many. The first are always the same; those past the table repeat its last.
        dtype: of the iteration. In a 16-bit dtype, all of the Polar Express but the last one leave room for rounding.
        composed: whether some are composed before they are applied.
    """
    if method == "newton_schulz":
        return [NEWTON_SCHULZ] * steps
    result = [POLAR_EXPRESS[min(i, len(POLAR_EXPRESS) - 1)] for i in range(steps)]
    if dtype.itemsize == 2:
        safety = SAFETY_COMPOSED if composed else SAFETY
        result[:-1] = [(a / safety, b / safety**3, c / safety**5) for a, b, c in result[:-1]]
    return result
