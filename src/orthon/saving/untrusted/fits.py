"""Whether a description of a checkpoint fits itself and the files that are there."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise, product, repeat

from orthon.saving.shown import shown
from orthon.saving.untrusted.description import Description, Place, SavedTensor
from orthon.saving.untrusted.errors import RefusedError
from orthon.saving.untrusted.torch_file import DTYPES

CUT_DIMS = 8


def are_all_of(size: tuple[int, ...], chunks: Collection[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Return whether chunks cover a tensor, each number once.

    A box is known by its corners, each with a sign: the changes of the function that is one inside and zero outside.
    Chunks fill the tensor exactly if all of their corners together are the corners of the tensor.

    Args:
        size: the shape of the tensor.
        chunks: the offsets and the shape of each.

    Raises:
        RefusedError: if they cut it along more than eight dims.
    """
    whole = ((0,) * len(size), size)
    if list(chunks) == [whole]:
        return True
    cut = [d for d in range(len(size)) if any((start[d], shape[d]) != (0, size[d]) for start, shape in chunks)]
    if len(cut) > CUT_DIMS:
        raise RefusedError(f"it has a tensor that is cut along {len(cut)} dims")
    if not cut and 0 not in size:  # each is the whole
        return len(chunks) == 1
    signs: Counter[tuple[int, ...]] = Counter()
    for (start, shape), sign in (*zip(chunks, repeat(1)), (whole, -1)):
        if 0 in shape:
            continue
        for ends in product((0, 1), repeat=len(cut)):
            corner = tuple(start[d] + end * shape[d] for d, end in zip(cut, ends, strict=True))
            signs[corner] += sign * (-1) ** sum(ends)
    return not any(signs.values())


def check_tensors(description: Description) -> None:
    """Raise an error unless the chunks of each tensor are all of it, and all that was saved has its place."""
    expected: set[tuple[str, tuple[int, ...] | None]] = set()
    for key, entry in description.entries.items():
        if not isinstance(entry, SavedTensor):
            expected.add((key, None))
            continue
        chunks = [(chunk.offsets, chunk.sizes) for chunk in entry.chunks]
        if not are_all_of(entry.size, chunks):
            raise RefusedError(
                f"{shown(key)} has {len(chunks)} chunks, which are not all of its shape {shown(entry.size)}"
            )
        for chunk in entry.chunks:
            place = description.places.get((key, chunk.offsets))
            if place is None:
                raise RefusedError(f"it does not tell where {shown(key)} lies")
            if math.prod(chunk.sizes) * DTYPES[entry.dtype].itemsize > place.length:
                raise RefusedError(f"{shown(key)} has a chunk of shape {shown(chunk.sizes)} in {place.length} bytes")
            expected.add((key, chunk.offsets))
    if without := [key for key, offsets in expected if (key, offsets) not in description.places]:
        raise RefusedError(f"it does not tell where {shown(min(without))} lies")
    if unknown := [key for key, offsets in description.places if (key, offsets) not in expected]:
        raise RefusedError(f"it has a place for {shown(unknown[0])}, which is no part of what was saved")
    if description.paths is not None and description.paths.keys() != description.entries.keys():
        raise RefusedError("it has paths of other keys than were saved")


def check_places(places: Iterable[tuple[str, Place]], sizes: Mapping[str, int]) -> None:
    """Raise an error unless all places lie within their files, and no byte in two of them.

    Args:
        places: where something lies, each with its key.
        sizes: of all files that these name, in bytes.
    """
    by_file: dict[str, list[tuple[int, int, str]]] = {}
    for key, place in places:
        end = place.offset + place.length
        if end > sizes[place.file]:
            raise RefusedError(
                f"{shown(key)} lies at bytes {place.offset} to {end} of {place.file}, which has {sizes[place.file]}"
            )
        by_file.setdefault(place.file, []).append((place.offset, end, key))
    for file, spans in by_file.items():
        spans.sort()
        for (_, end, key), (start, _, other) in pairwise(spans):
            if start < end:
                raise RefusedError(f"{shown(key)} and {shown(other)} lie in the same bytes of {file}")
