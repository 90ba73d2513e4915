"""The description of a checkpoint → torch's own objects for it, made anew."""

from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from orthon.saving.untrusted.description import Description, SavedTensor, SavedValue
from orthon.saving.untrusted.torch_file import DTYPES


def torch_metadata(description: Description, *, folder: Path, load_id: str) -> Metadata:
    """Return the description as torch.distributed.checkpoint takes it.

    Args:
        description: that has been checked.
        folder: of the checkpoint.
        load_id: a name for this reading of it.
    """
    return Metadata(
        state_dict_metadata={key: _entry(entry) for key, entry in description.entries.items()},
        planner_data=None if description.paths is None else dict(description.paths),
        storage_data={
            MetadataIndex(key, offsets): _StorageInfo(place.file, place.offset, place.length)
            for (key, offsets), place in description.places.items()
        },
        storage_meta=StorageMeta(checkpoint_id=folder, load_id=load_id),
        version=description.version,
    )


def _entry(entry: SavedTensor | SavedValue) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(entry, SavedValue):
        return BytesStorageMetadata()
    return TensorStorageMetadata(
        TensorProperties(DTYPES[entry.dtype]),
        torch.Size(entry.size),
        [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in entry.chunks],
    )
