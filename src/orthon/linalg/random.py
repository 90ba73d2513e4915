"""Random matrices as a pure function of (key, row, column)."""

import hashlib

import torch
from torch import Tensor

_CHUNK = 1 << 16  # entries at a time: the integers of one chunk stay in the cache of a CPU core

# The constants of the splitmix64 generator (Steele, Lea, Flood, OOPSLA 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def random_normal(key: str, rows: Tensor, cols: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return approximately normal random numbers with mean 0 and variance 1.

    Entry (i, j) depends on `key`, `rows[i]` and `cols[j]` alone. It depends neither on a global generator nor on the
    other entries that are asked for, so that a part of a matrix has the same values on every rank and device.
    Each entry is the sum of four 16-bit integers cut from one 64-bit hash. Every dtype wider than 16 bits holds such a
    sum exactly.

    Args:
        key: any text; other keys give independent numbers.
        rows: global row indices, (m,) int64.
        cols: global column indices, (n,) int64, on the same device.
        dtype: of the result.

    Returns:
        An (m, n) tensor on the device of `rows`.
    """
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)
    row_hash = _mix(rows * _GOLDEN + seed)
    col_hash = _mix(cols * _MIX_1 + ~seed)
    result = torch.empty(len(rows), len(cols), dtype=dtype, device=rows.device)
    rows_per_chunk = max(1, _CHUNK // max(1, len(cols)))
    for chunk, out in zip(torch.split(row_hash, rows_per_chunk), torch.split(result, rows_per_chunk), strict=True):
        bits = _mix(chunk[:, None] + col_hash[None, :])
        total = (bits & 0xFFFF).add_((bits >> 16) & 0xFFFF).add_((bits >> 32) & 0xFFFF).add_((bits >> 48) & 0xFFFF)
        # Four uniform integers below 2^16: mean 2 (2^16 − 1), variance (2^32 − 1) / 3.
        exact = total.to(torch.float64 if dtype == torch.float64 else torch.float32)
        out.copy_(exact.sub_(2 * 0xFFFF).mul_((3 / (2**32 - 1)) ** 0.5))
    return result


def _mix(x: Tensor) -> Tensor:
    """Return the splitmix64 finalizer of each 64-bit integer. It needs products that wrap around, as int64's do."""
    x = (x ^ _shift(x, 30)).mul_(_MIX_1)
    x = x.bitwise_xor_(_shift(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, by: int) -> Tensor:
    """Return the logical right shift. The right shift of torch keeps the sign."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)
