"""Write tokens to shards, piece by piece, so that it can go on after an interruption."""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from orthon.train.errors import UserError
from orthon.train.results.directory import named
from orthon.train.text.shard_format import HEADER_BYTES, ShardFormat, header


def shard_name(part: str, number: int) -> str:
    """Return the name of a shard."""
    return f"{part}_{number:06d}.bin"


class ShardWriter:
    """Fills shards one after the other: `train_000000.bin`, `train_000001.bin` and so on.

    Args:
        folder: where they are.
        part: beginning of their names.
        form: their format.
        vocab_size: size of the vocabulary, for the header.
        per_shard: tokens in each but the last.
        written: tokens that are in them already. What lies behind these is dropped.

    Raises:
        UserError: the last shard is missing, or does not have these tokens.
    """

    def __init__(
        self, folder: Path, part: str, *, form: ShardFormat, vocab_size: int, per_shard: int, written: int
    ) -> None:
        self._folder, self._part, self._form = folder, part, form
        self._vocab_size, self._per_shard, self.written = vocab_size, per_shard, written
        self._file: BinaryIO | None = None
        for path in folder.glob(f"{part}_*.bin"):
            number = path.stem.removeprefix(f"{part}_")
            if number.isdecimal() and int(number) >= -(-written // per_shard):
                path.unlink()
        if self._in_shard:
            try:
                self._file = self._open("r+b")
            except FileNotFoundError as error:
                raise UserError(f"{error.filename} is missing; delete {folder}") from error
            length = HEADER_BYTES + self._in_shard * form.token.itemsize
            if self._file.seek(0, os.SEEK_END) < length:
                raise UserError(f"{self._file.name} is shorter than it was; delete {folder}")
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)

    @property
    def _in_shard(self) -> int:
        return self.written % self._per_shard

    def append(self, tokens: NDArray[np.uint32]) -> None:
        """Write tokens, (length,), each below the vocabulary size."""
        while len(tokens):
            if self._file is None:
                self._file = self._open("xb")
                self._file.write(bytes(HEADER_BYTES))
            here = tokens[: self._per_shard - self._in_shard]
            with named(Path(self._file.name)):
                self._file.write(here.astype(self._form.token).tobytes())
            self.written += len(here)
            tokens = tokens[len(here) :]
            if not self._in_shard:
                self._close(self._per_shard)

    def save(self) -> None:
        """Have all that is written on the disk, with a header that says so."""
        if self._file is not None:
            self._write_header(self._file, self._in_shard)
            self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the last file, as it is."""
        if self._file is not None:
            with named(Path(self._file.name)):
                self._file.close()

    def _close(self, tokens: int) -> None:
        assert self._file is not None
        with self._file as file:
            self._write_header(file, tokens)
        self._file = None

    def _write_header(self, file: BinaryIO, tokens: int) -> None:
        with named(Path(file.name)):
            file.seek(0)
            file.write(header(self._form, tokens, self._vocab_size))
            file.flush()
            os.fsync(file.fileno())

    def _open(self, mode: str) -> BinaryIO:
        path = self._folder / shard_name(self._part, self.written // self._per_shard)
        return open(path, mode, opener=_no_link)  # type: ignore[return-value]  # a binary mode


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
