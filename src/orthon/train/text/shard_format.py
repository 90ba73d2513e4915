"""The headers of token shards: which are known, and how a file is read that has none.

Known are those of llm.c (`dev/data/data_common.py`): 256 little-endian int32 numbers, which are a magic number, a
version, the number of tokens, and zeros. modded-nanogpt has the first of them. Shards that Orthon writes have the size
of the vocabulary as fourth number.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orthon.train.errors import UserError

NUMBER = np.dtype("<i4")
NUMBERS = 256
HEADER_BYTES = NUMBERS * NUMBER.itemsize


@dataclass(frozen=True)
class ShardFormat:
    """How a shard holds its tokens."""

    magic: int
    version: int
    bits: int  # of a token
    vocab_size: int  # where neither header nor settings tell

    @property
    def token(self) -> np.dtype[np.generic]:
        """The type of a token: unsigned, little-endian."""
        return np.dtype(f"<u{self.bits // 8}")


GPT2 = ShardFormat(magic=20240520, version=1, bits=16, vocab_size=50304)  # 50257, rounded up
LLAMA3 = ShardFormat(magic=20240801, version=7, bits=32, vocab_size=128256)
KNOWN = {known.magic: known for known in (GPT2, LLAMA3)}
OF_BITS = {known.bits: known for known in KNOWN.values()}

# What begins files of other kinds, which may have the suffix .bin too.
OTHERS = {
    b"\x93NUMPY": "a file of numpy.save",
    b"PK\x03\x04": "a zip archive, such as torch.save writes",
    b"\x1f\x8b": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"MMIDIDX": "an index of Megatron-LM",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
}
DATES = range(20200101, 20991232)  # llm.c's magic numbers are dates, as are those of its kin
VERSIONS = range(1000)  # two 16-bit tokens that look like a date are common, but not with these after them
FIRST_ZERO = 16  # from here on, the numbers of any header that we have seen are zeros
MOST_SMALL = 16  # in 32-bit tokens below 2²⁰, every second half is below this


def header_of(start: bytes, path: Path) -> tuple[ShardFormat, int, int] | None:
    """Return the format, number of tokens and vocabulary size (or 0) in a header; None if the file has none.

    Args:
        start: the first `HEADER_BYTES` bytes of the file.
        path: for errors.

    Raises:
        UserError: the file has an unknown header or version, or is of another kind.
    """
    for beginning, kind in OTHERS.items():
        if start.startswith(beginning):
            raise UserError(f"{path} is no token shard but {kind}")
    if len(start) < 2 * NUMBER.itemsize:
        return None
    numbers = np.frombuffer(start[: len(start) // NUMBER.itemsize * NUMBER.itemsize], NUMBER)
    magic, version = int(numbers[0]), int(numbers[1])
    if magic in KNOWN and len(start) == HEADER_BYTES:
        known = KNOWN[magic]
        if version != known.version:
            raise UserError(f"{path} has version {version} of the shard format, but only {known.version} is read")
        return known, int(numbers[2]), int(numbers[3])
    if magic in KNOWN and version == KNOWN[magic].version:
        raise UserError(f"{path} is damaged: it ends within its header")
    swapped, swapped_version = (int(number) for number in numbers[:2].byteswap())
    is_swapped = swapped in DATES and swapped_version in VERSIONS
    is_dated = magic in DATES and version in VERSIONS
    has_zeros = len(start) == HEADER_BYTES and magic != 0 and not numbers[FIRST_ZERO:].any()
    if is_swapped or is_dated or has_zeros:
        shown = f"big-endian magic number {swapped}" if is_swapped else f"magic number {magic}"
        known_ones = ", ".join(f"{one.magic} ({one.bits}-bit tokens)" for one in KNOWN.values())
        raise UserError(f"{path} has an unknown header with {shown}; known are {known_ones}, or no header at all")
    return None


def looks_like_32_bits(tokens: NDArray[np.uint16]) -> bool:
    """Return whether numbers that were read as 16-bit tokens look like the halves of 32-bit ones."""
    low, high = tokens[0::2], tokens[1::2]
    return len(high) >= 8 and int(high.max()) < MOST_SMALL <= int(low.max())


def header(known: ShardFormat, tokens: int, vocab_size: int) -> bytes:
    """Return the header of a shard with so many tokens."""
    numbers = np.zeros(NUMBERS, NUMBER)
    numbers[:4] = known.magic, known.version, tokens, vocab_size
    return numbers.tobytes()
