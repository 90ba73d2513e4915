"""Factors of the learning rate that depend on a matrix's shape."""

from collections.abc import Callable
from math import sqrt

_FACTORS: dict[str, Callable[[int, int], float]] = {
    "spectral_unclamped": lambda m, n: sqrt(m / n),
    "original": lambda m, n: sqrt(max(1, m / n)),
    "match_rms_adamw": lambda m, n: 0.2 * sqrt(max(m, n)),
    "none": lambda m, n: 1.0,  # noqa: ARG005
}

ADJUST_LR_FNS = tuple(_FACTORS)  # the first is the default


def lr_factor(adjust_lr_fn: str, m: int, n: int) -> float:
    """Return the factor of the learning rate for an orthonormal update of shape (m, n).

    Args:
        adjust_lr_fn: "spectral_unclamped", √(m/n): an update changes the RMS of the layer's output by at most lr
            times the RMS of its input, whatever the shape (arXiv 2504.05295, section 3);
            "original", √max(1, m/n): Keller Jordan's, and torch's default for Muon;
            "match_rms_adamw", 0.2·√max(m, n): the RMS of an update is 0.2, about AdamW's (arXiv 2502.16982);
            "none", 1.
        m: fan_out, the number of rows.
        n: fan_in, the number of columns.
    """
    return _FACTORS[adjust_lr_fn](m, n)
