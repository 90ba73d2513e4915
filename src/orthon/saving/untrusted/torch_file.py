"""Files of torch.save, read without torch.load: what they say is checked first, and tensors are then made anew.

A file of torch.save is a ZIP archive without compression: a pickle, and the numbers of each tensor. torch.load runs no
code with `weights_only=True`. But it lets a small file ask for any amount of memory, and takes the place and the size
of a tensor in its storage as they are given.
"""

import errno
import io
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthon.saving.shown import shown
from orthon.saving.untrusted.errors import DamagedError, RefusedError
from orthon.saving.untrusted.pickled import Made, Named, Pairs, Stored, read_pickle

WHAT = "a file of tensors and plain values"
_LOCAL = 30  # bytes of an entry's header that are always there
_DIMS = 64

DTYPES = {
    name: dtype for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)
}  # by all of their names
_STORAGES = {
    Named("torch", "DoubleStorage"): torch.float64,
    Named("torch", "FloatStorage"): torch.float32,
    Named("torch", "HalfStorage"): torch.float16,
    Named("torch", "BFloat16Storage"): torch.bfloat16,
    Named("torch", "LongStorage"): torch.int64,
    Named("torch", "IntStorage"): torch.int32,
    Named("torch", "ShortStorage"): torch.int16,
    Named("torch", "CharStorage"): torch.int8,
    Named("torch", "ByteStorage"): torch.uint8,
    Named("torch", "BoolStorage"): torch.bool,
    Named("torch", "ComplexFloatStorage"): torch.complex64,
    Named("torch", "ComplexDoubleStorage"): torch.complex128,
    Named("torch.storage", "UntypedStorage"): torch.uint8,  # of the dtypes that came later
}
_TENSOR = Named("torch._utils", "_rebuild_tensor_v2")
_TENSOR_OF_DTYPE = Named("torch._utils", "_rebuild_tensor_v3")
_PARAMETER = Named("torch._utils", "_rebuild_parameter")
_ORDERED = Named("collections", "OrderedDict")
_SIZE = Named("torch", "Size")
_DEVICE = Named("torch", "device")
_SET = Named("builtins", "set")
_COMPLEX = Named("builtins", "complex")
_BYTES = Named("_codecs", "encode")
_CALLED = {_TENSOR, _TENSOR_OF_DTYPE, _PARAMETER, _ORDERED, _SIZE, _DEVICE, _SET, _COMPLEX, _BYTES}
NAMES = {(each.module, each.name) for each in (*_CALLED, *_STORAGES)} | {("torch", name) for name in DTYPES}


def read_torch_file(file: io.BufferedIOBase | io.RawIOBase) -> Any:
    """Return what a file of torch.save holds, with all tensors in main memory.

    It may have tensors, None, bool, int, float, complex, str, bytes, list, tuple, set, dict, dtypes, sizes and devices.
    A Parameter is read as a tensor.

    Args:
        file: open to read, and to seek.

    Raises:
        RefusedError: if it is damaged, has anything else in it, or asks for more memory than it is large.
    """
    try:
        archive = _Archive(file)
        return _Builder(archive).built(read_pickle(archive.read("data.pkl"), names=NAMES, what=WHAT))
    except RefusedError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # the disk's fault, and not that of a place before the start
            raise
        raise DamagedError("it is damaged") from error
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        struct.error,
        ValueError,
        LookupError,
        ArithmeticError,
        EOFError,
    ) as error:
        raise DamagedError("it is damaged") from error


@dataclass(frozen=True)
class _Entry:
    start: int  # of its bytes in the file
    bytes: int


class _Archive:
    """The entries of an archive, by their names within its only folder."""

    def __init__(self, file: io.BufferedIOBase | io.RawIOBase) -> None:
        self.file = file
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        if file.read(4) != b"PK\3\4":
            raise DamagedError("it is no file of torch.save, or of a version before 1.6")
        self.entries: dict[str, _Entry] = {}
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    raise RefusedError(f"{shown(info.filename)} in it is compressed, as torch.save does not do")
                name = info.filename.partition("/")[2]
                if name in self.entries:
                    raise RefusedError(f"it has {shown(info.filename)} twice")
                self.entries[name] = _Entry(self._start(info.header_offset), info.file_size)
        if any(entry.start + entry.bytes > length for entry in self.entries.values()):
            raise DamagedError("it is damaged")
        if sum(entry.bytes for entry in self.entries.values()) > length:
            raise RefusedError("its parts overlap")

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry."""
        content = self._entry(name)
        self.file.seek(content.start)
        return self.file.read(content.bytes) or b""

    def tensor(self, name: str) -> Tensor:
        """Return the bytes of an entry as a new tensor."""
        entry = self._entry(name)
        content = bytearray(entry.bytes)
        self.file.seek(entry.start)
        place = memoryview(content)
        while place:
            count = self.file.readinto(place)
            if not count:
                raise DamagedError("it is damaged")
            place = place[count:]
        return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    def little_endian(self) -> bool:
        """Whether its numbers begin with their lowest byte."""
        return "byteorder" not in self.entries or self.read("byteorder") == b"little"

    def _entry(self, name: str) -> _Entry:
        if name not in self.entries:
            raise RefusedError(f"it has no {shown(name)}")
        return self.entries[name]

    def _start(self, header: int) -> int:
        self.file.seek(header)
        [name, extra] = struct.unpack_from("<HH", self.file.read(_LOCAL) or b"", 26)
        return header + _LOCAL + int(name) + int(extra)


class _Builder:
    """Makes the values that a pickle describes."""

    def __init__(self, archive: _Archive) -> None:
        self.archive = archive
        self._storages: dict[str, Tensor] = {}  # each is read once
        self._done: dict[int, Any] = {}  # what lies in several places is one object

    def built(self, value: Any) -> Any:
        """Return the value. The levels of `value` are known to be few."""
        if not isinstance(value, list | tuple | Made | Stored | Named):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = self._made(value)
        return self._done[id(value)]

    def _made(self, value: Any) -> Any:
        if isinstance(value, Pairs):
            return self._dict(value)
        if isinstance(value, list):
            return [self.built(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.built(item) for item in value)
        if isinstance(value, Named) and value.module == "torch" and value.name in DTYPES:
            return DTYPES[value.name]
        if isinstance(value, Made):
            return self._called(value)
        raise RefusedError("it has a name or a storage by itself")

    def _dict(self, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
        result = {}
        for key, value in pairs:
            result[_hashable(self.built(key))] = self.built(value)
        return result

    def _called(self, made: Made) -> Any:
        named, args = made.named, made.args
        if named in (_TENSOR, _TENSOR_OF_DTYPE):
            return self._tensor(args, of_dtype=named == _TENSOR_OF_DTYPE)
        match named, args:
            case _, _ if named != _ORDERED and (made.items or made.state is not None):
                pass
            case n, () if n == _ORDERED:
                return OrderedDict(self._dict(made.items))
            case n, (Made() as tensor, bool(), *_) if n == _PARAMETER and tensor.named in (_TENSOR, _TENSOR_OF_DTYPE):
                return self.built(tensor)
            case n, (tuple(sizes),) if n == _SIZE and _are_numbers(sizes):
                return torch.Size(sizes)
            case n, (str(kind), *index) if n == _DEVICE and len(index) <= 1 and _are_numbers(index):
                return _device(kind, *index)
            case n, (list(items),) if n == _SET:
                return {_hashable(self.built(item)) for item in items}
            case n, (float(real), float(imaginary)) if n == _COMPLEX:
                return complex(real, imaginary)
            case n, (str(text), "latin1") if n == _BYTES:
                try:
                    return text.encode("latin1")
                except UnicodeEncodeError as error:
                    raise RefusedError("it has bytes that are none") from error
        raise RefusedError(f"it calls {named.module}.{named.name} with other arguments than torch.save does")

    def _tensor(self, args: tuple[Any, ...], *, of_dtype: bool) -> Tensor:
        storage, offset, size, strides, *more = args if len(args) >= 6 else (None,) * 6
        if not isinstance(storage, Stored) or not isinstance(size, tuple) or not isinstance(strides, tuple):
            raise RefusedError("it has a tensor that is not as torch.save writes one")
        if len(size) > _DIMS or len(size) != len(strides) or not _are_numbers((offset, *size, *strides)):
            raise RefusedError(f"it has a tensor of shape {shown(size)}")
        if len(more) > 3 + of_dtype or (len(more) > 2 + of_dtype and more[2 + of_dtype]):
            raise RefusedError("it has a tensor with marks, such as that of a conjugate")
        flat, dtype = self._storage(storage.id)
        if of_dtype:
            named = more[2] if len(more) > 2 else None
            if flat.dtype != torch.uint8 or not isinstance(named, Named) or named.name not in DTYPES:
                raise RefusedError("it has a tensor without a dtype")
            dtype = DTYPES[named.name]
        numbers = flat.numel() // dtype.itemsize
        last = offset + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
        count = 1
        for length in size:
            count *= length
        if count > numbers or (count and last >= numbers) or offset > numbers:
            raise RefusedError(f"it has a tensor of shape {shown(size)} in a storage of {numbers} numbers")
        return torch.as_strided(flat[: numbers * dtype.itemsize].view(dtype), size, strides, offset)

    def _storage(self, pid: Any) -> tuple[Tensor, torch.dtype]:
        """Return the bytes of a storage, and of what numbers they are."""
        match pid:
            case ("storage", Named() as named, str(key), str(), int(count)) if named in _STORAGES and count >= 0:
                dtype = _STORAGES[named]
            case _:
                raise RefusedError("it has a tensor whose storage is not as torch.save writes one")
        if key not in self._storages:
            if not self.archive.little_endian() or sys.byteorder != "little":
                raise RefusedError("its numbers are not little-endian")
            self._storages[key] = self.archive.tensor(f"data/{key}")
        flat = self._storages[key]
        if count * dtype.itemsize > flat.numel():
            raise RefusedError(f"it has a storage of {count} numbers in {flat.numel()} bytes")
        return flat, dtype


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _hashable(key: Any) -> Any:
    if key is None or isinstance(key, str | int | float | bytes | torch.dtype):
        return key
    if isinstance(key, tuple):
        return tuple(_hashable(part) for part in key)
    raise RefusedError(f"it has the key {shown(key)} in a dict")


def _device(kind: str, index: int | None = None) -> torch.device:
    try:
        return torch.device(kind) if index is None else torch.device(kind, index)
    except (RuntimeError, ValueError) as error:
        raise RefusedError(f"it has the device {shown(kind)}") from error
