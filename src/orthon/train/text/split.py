"""Which documents, or which end of the text, are held out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from orthon.train.text.passages import Passage, character_start

HELD_OUT_SHARE = 0.05
FEWEST_TO_SPLIT_BY_DOCUMENT = 20  # of fewer, one in twenty may be far from 5 % of the text


def is_held_out(name: str) -> bool:
    """Return whether the document with this name belongs to the held-out text."""
    number = int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())
    return number < HELD_OUT_SHARE * 2**64


def split(read: Callable[[], Iterable[Passage]]) -> Iterator[tuple[Passage, bool]]:
    """Every passage in order, with whether it is held out. The rule is the same as for a text in memory.

    Args:
        read: reads all passages from the beginning. It is called twice: at first to see which rule holds.
    """
    limit = _training_bytes(read())
    if limit is None:
        for passage in read():
            yield passage, is_held_out(passage.name)
        return
    position = 0
    for passage in read():
        start, position = position, position + len(passage.content)
        if start < limit < position:
            middle = _middle(passage.content, limit - start)
            yield replace(passage, content=passage.content[:middle], ends=False), False
            yield replace(passage, content=passage.content[middle:], read=0), True
        else:
            yield passage, start >= limit


def _training_bytes(read: Iterable[Passage]) -> int | None:
    """Return the bytes before the end that is held out; None if documents are held out."""
    documents, total = 0, 0
    seen: set[bool] = set()
    for passage in read:
        total += len(passage.content)
        if passage.ends:
            documents += 1
            seen.add(is_held_out(passage.name))
            if documents >= FEWEST_TO_SPLIT_BY_DOCUMENT and len(seen) == 2:
                return None
    return round(total * (1 - HELD_OUT_SHARE))


def _middle(content: bytes, position: int) -> int:
    """Return where to cut a passage, soon after a position inside it: after a line, or at least after a character."""
    line = content.find(b"\n", position) + 1
    return line if 0 < line < len(content) else character_start(content, position)
