"""Figures in units that a person reads."""

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_OPERATIONS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_COUNTS = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"), (1.0, ""))


def size(count: float) -> str:
    """Return a number of bytes, such as "467 GB"."""
    return " ".join(_in_units(count, _BYTES))


def operations(count: float) -> str:
    """Return a number of floating-point operations, such as "227 TFLOP"."""
    return " ".join(_in_units(count, _OPERATIONS)) if count else ""


def duration(seconds: float) -> str:
    """Return a time, such as "0.12 s" or "35 µs"."""
    return " ".join(_in_units(seconds, _SECONDS)) if seconds else ""


def amount(count: float) -> str:
    """Return how many there are, such as "6.98 billion"."""
    return "".join(_in_units(count, _COUNTS))


def _in_units(value: float, units: tuple[tuple[float, str], ...]) -> tuple[str, str]:
    """Return a value with three digits in the largest unit of which there is one, and that unit."""
    for scale, name in units:
        if value >= 0.9995 * scale or scale == units[-1][0]:
            scaled = value / scale
            return (f"{scaled:.3g}" if scaled < 999.5 else f"{scaled:,.0f}"), name
    raise AssertionError
