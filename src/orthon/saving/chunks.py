"""Whether the chunks of a tensor in a checkpoint are all of it."""

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def check_covered(key: str, saved: TensorStorageMetadata) -> None:
    """Raise a ValueError if numbers of a tensor lie in none of its chunks; they would be read as whatever is there.

    Args:
        key: of the tensor in the checkpoint.
        saved: its description.
    """
    size = tuple(saved.size)
    chunks = {(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in saved.chunks}
    if (((0,) * len(size)), size) in chunks or 0 in size:
        return
    # Where any chunk begins or ends cuts the tensor into cells, and each of them lies in a chunk or outside.
    edges = []
    for dim, length in enumerate(size):
        found = {0, length}
        for offsets, sizes in chunks:
            found |= {min(offsets[dim], length), min(offsets[dim] + sizes[dim], length)}
        edges.append({edge: place for place, edge in enumerate(sorted(found))})
    covered = torch.zeros([len(of_dim) - 1 for of_dim in edges], dtype=torch.bool, device="cpu")
    for offsets, sizes in chunks:
        within = tuple(
            slice(edges[dim][min(start, size[dim])], edges[dim][min(start + length, size[dim])])
            for dim, (start, length) in enumerate(zip(offsets, sizes, strict=True))
        )
        covered[within] = True
    if not covered.all():
        raise ValueError(f"checkpoint: {key!r} has {len(chunks)} chunks, which are not all of its shape {size}")
