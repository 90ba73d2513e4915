"""Whether the chunks of a tensor in a checkpoint are all of it."""

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from orthon.saving.shown import shown
from orthon.saving.untrusted.fits import are_all_of


def check_covered(key: str, saved: TensorStorageMetadata) -> None:
    """Raise a ValueError if numbers of a tensor lie in no chunk, and would be read as whatever is there, or in several.

    Args:
        key: of the tensor in the checkpoint.
        saved: its description.
    """
    size = tuple(saved.size)
    chunks = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in saved.chunks]
    if not are_all_of(size, chunks):
        raise ValueError(
            f"checkpoint: {shown(key)} has {len(chunks)} chunks, which are not all of its shape {size}, each part once"
        )
