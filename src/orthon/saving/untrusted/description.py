"""What the description of a checkpoint says, as plain values that nobody can change, and whether that can be."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orthon.saving.shown import shown
from orthon.saving.untrusted.errors import RefusedError
from orthon.saving.untrusted.pickled import Made, Named, Pairs, read_pickle
from orthon.saving.untrusted.torch_file import DTYPES

WHAT = "a checkpoint's description"
DIMS = 64
LONGEST_NAME = 10_000  # characters

Path = tuple[str | int, ...]  # the keys that lead to a value in a nested state dict
Numbers = tuple[int, ...]
K = TypeVar("K", str, tuple[str, tuple[int, ...] | None])


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor: where it begins, and its shape."""

    offsets: Numbers
    sizes: Numbers


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor, by the name of its dtype, its shape and its parts."""

    dtype: str
    size: Numbers
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class SavedValue:
    """A value that is no tensor."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a chunk or a value lie: in which file, from which byte, and how many."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Description:
    """What is in a checkpoint.

    Attributes:
        entries: what was saved, by its key.
        paths: the nested path of each key; None if the checkpoint has none.
        places: where each chunk lies, by the key and the chunk's offsets; by None in their place for a value.
        version: of the format; None for an early one.
    """

    entries: Mapping[str, SavedTensor | SavedValue]
    paths: Mapping[str, Path] | None
    places: Mapping[tuple[str, Numbers | None], Place]
    version: str | None = field(default=None)


_METADATA = "torch.distributed.checkpoint.metadata"
_DESCRIPTION = Named(_METADATA, "Metadata")
_TENSOR = Named(_METADATA, "TensorStorageMetadata")
_VALUE = Named(_METADATA, "BytesStorageMetadata")
_CHUNK = Named(_METADATA, "ChunkStorageMetadata")
_PROPERTIES = Named(_METADATA, "TensorProperties")
_INDEX = Named(_METADATA, "MetadataIndex")
_PLACE = Named("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE = Named("torch", "Size")
_LAYOUT = Named("torch.serialization", "_get_layout")
NAMES = {
    *((n.module, n.name) for n in (_DESCRIPTION, _TENSOR, _VALUE, _CHUNK, _PROPERTIES, _INDEX, _PLACE, _SIZE, _LAYOUT)),
    (_METADATA, "StorageMeta"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    *(("torch", name) for name in DTYPES),
}


def read_description(content: bytes) -> Description:
    """Return what the pickle `.metadata` says.

    Raises:
        RefusedError: if it is damaged, or no description as torch.distributed.checkpoint writes them.
    """
    value = read_pickle(content, names=NAMES, what=WHAT)
    if not isinstance(value, Made) or value.named != _DESCRIPTION:
        raise RefusedError("it is no description of a checkpoint")
    # What is known of the folder in which it was saved, `storage_meta`, is left out.
    fields = _fields(
        value, _DESCRIPTION, {"state_dict_metadata", "storage_data"}, {"planner_data", "storage_meta", "version"}
    )
    entries = {key: _entry(key, entry) for key, entry in _items(fields["state_dict_metadata"], _key)}
    paths = fields.get("planner_data")
    version = fields.get("version")
    if version is not None and not (isinstance(version, str) and re.fullmatch(r"[0-9.]{1,20}", version)):
        raise RefusedError(f"its version is {shown(version)}")
    return Description(
        entries,
        None if paths is None else {key: _path(key, path, len(entries)) for key, path in _items(paths, _key)},
        {index: _place(place) for index, place in _items(fields["storage_data"], _index)},
        version,
    )


def _entry(key: str, value: Any) -> SavedTensor | SavedValue:
    if isinstance(value, Made) and value.named == _VALUE:
        _fields(value, _VALUE, set())
        return SavedValue()
    fields = _fields(value, _TENSOR, {"properties", "size", "chunks"})
    if not isinstance(fields["chunks"], list):
        raise RefusedError(f"the chunks of {shown(key)} are no list")
    size = _size(fields["size"])
    chunks = tuple(_chunk(chunk, len(size)) for chunk in fields["chunks"])
    return SavedTensor(_dtype(fields["properties"]), size, chunks)


def _chunk(value: Any, dims: int) -> Chunk:
    fields = _fields(value, _CHUNK, {"offsets", "sizes"})
    chunk = Chunk(_size(fields["offsets"]), _size(fields["sizes"]))
    if len(chunk.offsets) != dims or len(chunk.sizes) != dims:
        raise RefusedError(
            f"a chunk of a tensor of {dims} dims has {len(chunk.offsets)} offsets and {len(chunk.sizes)} sizes"
        )
    return chunk


def _dtype(value: Any) -> str:
    """Return the dtype among the properties of a tensor. The others mean nothing any more, and must be usual ones."""
    if not isinstance(value, Made) or value.named != _PROPERTIES or value.args or value.items:
        raise RefusedError("it has a tensor without properties")
    state: tuple[Any, ...] = value.state if isinstance(value.state, tuple) else ()
    if [type(part) for part in state] == [Named, Made, bool, Made, bool]:
        dtype, layout, *_ = state
        if dtype.name in DTYPES and layout.named == _LAYOUT and layout.args == ("torch.strided",):
            return str(dtype.name)
    raise RefusedError("it has a tensor with other properties than a dense one has")


def _index(value: Any) -> tuple[str, Numbers | None]:
    fields = _fields(value, _INDEX, {"fqn"}, {"offset", "index"})
    offset = fields.get("offset")
    return _key(fields["fqn"]), None if offset is None else _size(offset)


def _place(value: Any) -> Place:
    fields = _fields(value, _PLACE, {"relative_path", "offset", "length"}, {"transform_descriptors"})
    file, offset, length = fields["relative_path"], fields["offset"], fields["length"]
    if not isinstance(file, str) or not _is_number(offset) or not _is_number(length):
        raise RefusedError(f"it has a place {shown(offset)} to {shown(length)} in {shown(file)}")
    if fields.get("transform_descriptors"):
        raise RefusedError("its files are compressed or changed by an extension, which is not supported")
    return Place(file, offset, length)


def _path(key: str, value: Any, entries: int) -> Path:
    """Return a path. A list has no more items than there are entries, so a position in it is below their number."""
    if not isinstance(value, tuple) or not value or len(value) > DIMS:
        raise RefusedError(f"{shown(key)} has no path")
    for step in value:
        if type(step) is not str and not (_is_number(step) and step < entries):
            raise RefusedError(f"{shown(key)} has the path {shown(value)}")
    if ".".join(map(str, value)) != key:
        raise RefusedError(f"{shown(key)} has the path of another key, {shown(value)}")
    return value


def _key(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise RefusedError(f"it has the key {shown(value)}")
    return value


def _size(value: Any) -> Numbers:
    match value:
        case Made() if value.named == _SIZE and len(value.args) == 1 and value.state is None and not value.items:
            [numbers] = value.args
            few = isinstance(numbers, tuple) and len(numbers) <= DIMS
            if few and all(map(_is_number, numbers)) and math.prod(numbers) < 2**62:
                return numbers  # type: ignore[no-any-return]
    raise RefusedError("it has a size that is none")


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _fields(value: Any, of: Named, needed: set[str], more: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the attributes of an object of a class."""
    if not isinstance(value, Made) or value.named != of or value.args or value.items:
        raise RefusedError(f"it has something else where {of.name} should be")
    fields: dict[str, Any] = {}
    state = Pairs() if value.state is None else value.state
    if not isinstance(state, Pairs):
        raise RefusedError(f"its {of.name} has {shown(state)}")
    for key, field_value in state:
        if not isinstance(key, str) or key not in needed | more or key in fields:
            raise RefusedError(f"its {of.name} has {shown(key)}")
        fields[key] = field_value
    if needed - fields.keys():
        raise RefusedError(f"its {of.name} lacks {shown(min(needed, default=''))}")
    return fields


def _items(value: Any, key_of: Callable[[Any], K]) -> Iterator[tuple[K, Any]]:
    """Yield the items of a dict with what its keys mean. No key may be there twice."""
    if not isinstance(value, Pairs):
        raise RefusedError("it has something else where a dict should be")
    seen: set[K] = set()
    for key, item in value:
        known = key_of(key)
        if known in seen:
            raise RefusedError("it has a key twice")
        seen.add(known)
        yield known, item
