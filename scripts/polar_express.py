"""Compute the table of polynomials of `orthon.linalg.polynomials`, and print it as it stands there.

    python scripts/polar_express.py [--lowest 1e-3] [--steps 10]

Each step of the iteration takes the singular values x of a matrix to p(x) = a x + b x³ + c x⁵. Where the steps so far
have brought them into [l, u], the best next p is the one that comes closest to 1 on all of [l, u]; the steps that are
each best in this way are also best together (Amsel et al., "The Polar Express", arXiv 2505.16932), so that the first
k rows of the table are the best k steps, whatever k is.

The best p of three terms errs by the same E at four points, with alternating signs: at l, at its own maximum, at its
own minimum, and at u. Remez's algorithm finds it: solve for a, b, c and E with the four points as they are, then move
the inner two to where p' is zero, until they stay. Decimals of 60 digits leave no question of rounding, which for l
close to u would otherwise eat everything.
"""

import argparse
from decimal import Decimal, localcontext

Polynomial = tuple[Decimal, Decimal, Decimal]

# An interval that reaches below this part of its top is treated as if it began there: p would otherwise rise so
# steeply at zero, and dip so low behind it, that what 16-bit numbers round is amplified. The value is the paper's.
CUSHION = Decimal("0.02407327424182761")

DIGITS = 60


def best_polynomial(low: Decimal, high: Decimal) -> Polynomial:
    """Return a, b and c such that a x + b x³ + c x⁵ errs least from 1 on [low, high]."""
    # Where the extrema would be if the interval were short.
    maximum, minimum = (low * 3 + high) / 4, (low + high * 3) / 4
    for _ in range(200):
        rows = [[x, x**3, x**5, Decimal((-1) ** i), Decimal(1)] for i, x in enumerate((low, maximum, minimum, high))]
        a, b, c, _ = solve(rows)
        # p' = a + 3 b y + 5 c y² with y = x².
        root = (9 * b * b - 20 * a * c).sqrt()
        before = maximum, minimum
        maximum, minimum = (((-3 * b - sign * root) / (10 * c)).sqrt() for sign in (1, -1))
        if abs(maximum - before[0]) + abs(minimum - before[1]) < Decimal(10) ** (-DIGITS // 2):
            return a, b, c
    raise ArithmeticError(f"the exchange does not settle on [{low}, {high}]")


def solve(rows: list[list[Decimal]]) -> list[Decimal]:
    """Return the solution of linear equations, each a row of coefficients and the right-hand side. Overwrites them."""
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda j: abs(rows[j][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(n):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[n] for row in rows]


def polynomials(lowest: Decimal, steps: int) -> list[Polynomial]:
    """Return the polynomials of the first steps for singular values in [lowest, 1]."""
    with localcontext() as context:
        context.prec = DIGITS
        low, high = lowest, Decimal(1)
        result = []
        for _ in range(steps):
            if high - low < Decimal("1e-14"):  # float64 knows no better than the limit, which is best around 1
                result.append((Decimal(15) / 8, Decimal(-10) / 8, Decimal(3) / 8))
                continue
            p = best_polynomial(max(low, CUSHION * high), high)
            # With a cushion, the errors at the true ends differ: the same ratio of the two, centered around 1.
            center = (value(p, low) + value(p, high)) / 2
            a, b, c = (coefficient / center for coefficient in p)
            result.append((a, b, c))
            low = value((a, b, c), low)
            high = 2 - low
        return result


def value(p: Polynomial, x: Decimal) -> Decimal:
    """Return p(x)."""
    a, b, c = p
    return a * x + b * x**3 + c * x**5


def table(lowest: str = "1e-3", steps: int = 10) -> list[tuple[float, float, float]]:
    """Return the coefficients as float64."""
    return [(float(a), float(b), float(c)) for a, b, c in polynomials(Decimal(lowest), steps)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Print the polynomials of the Polar Express as Python.")
    parser.add_argument("--lowest", default="1e-3", help="the smallest singular value to bring close to 1")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    print("POLAR_EXPRESS = (")
    for row in table(options.lowest, options.steps):
        print(f"    {row},")
    print(")")


if __name__ == "__main__":
    main()
