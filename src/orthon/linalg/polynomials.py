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

# Keller Jordan's polynomial (https://kellerjordan.github.io/posts/muon), also that of torch.optim.Muon. It is the
# steepest at zero of those that keep larger singular values between 0.7 and 1.2.
NEWTON_SCHULZ: Polynomial = (3.4445, -4.7750, 2.0315)

# By which factor rounding in 16 bits may enlarge a singular value in one step. Each polynomial of the table is made for
# an interval and soon grows without bound above it, so it needs room for this factor. The first factor is for
# polynomials of the matrix itself, the second for composed ones of its Gram matrix, for which 1.01 is too little.
# Measured on matrices of 256 rows with many kinds of spectra.
SAFETY = 1.01
SAFETY_COMPOSED = 1.02


def polynomials(method: str, steps: int, dtype: torch.dtype, *, composed: bool) -> list[Polynomial]:
    """Return the polynomials of an iteration.

    Args:
        method: "polar_express" or "newton_schulz".
        steps: how many polynomials. The first ones are the same for every number of steps; those after the end of the
            table repeat its last one.
        dtype: of the iteration. In a 16-bit dtype, all polynomials of the Polar Express but the last leave room for
            rounding.
        composed: whether some are composed before they are applied.
    """
    if method == "newton_schulz":
        return [NEWTON_SCHULZ] * steps
    result = [POLAR_EXPRESS[min(i, len(POLAR_EXPRESS) - 1)] for i in range(steps)]
    if dtype.itemsize == 2:
        safety = SAFETY_COMPOSED if composed else SAFETY
        result[:-1] = [(a / safety, b / safety**3, c / safety**5) for a, b, c in result[:-1]]
    return result


# In 16 bits, polynomials are composed only for Gram matrices of at least this side. In smaller ones rounding does not
# average out: of Gaussian matrices of 8×32 to 32×96, 6 to 12 % end with a singular value above 1.2, up to 26; of
# 48×144 0.2 %, of 64×192 none.
COMPOSED_SIDE = 128

# How many polynomials the Gram route composes before it applies them and computes a new Gram matrix. Each multiplies
# the rounding error of the Gram matrix by up to a²: by 16 and less, but by 68 in the first polynomial, which is
# therefore applied alone. With three instead of two the error in float32 is five times larger.
STEPS_PER_GRAM = 2


def segments(method: str, steps: int, dtype: torch.dtype, route: str, side: int) -> list[list[Polynomial]]:
    """Return the polynomials of an iteration, cut into those that are composed before they are applied.

    Args:
        method: as for `polynomials`.
        steps: as for `polynomials`.
        dtype: of the iteration.
        route: "gram", where polynomials may be composed, or "direct".
        side: of the Gram matrices.
    """
    composed = route == "gram" and steps > 2 and (dtype.itemsize > 2 or side >= COMPOSED_SIDE)
    first, *rest = polynomials(method, steps, dtype, composed=composed)
    length = STEPS_PER_GRAM if composed else 1
    return [[first], *(rest[i : i + length] for i in range(0, len(rest), length))]
