"""How close a result is to its reference."""

from torch import Tensor


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, case: str, scale: Tensor | None = None) -> None:
    error = (actual.double() - expected).norm()
    size = (expected if scale is None else scale).norm().clamp_min(1e-300)
    assert error <= tolerance * size, f"{case}: relative error {error / size:.2e}, allowed {tolerance:.0e}"
