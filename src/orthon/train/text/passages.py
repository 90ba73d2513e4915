"""Documents in passages of bounded length, so that no document need be in memory as a whole."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LONGEST = 2**18  # bytes in a passage; also the length of a block of a file

Document = tuple[str, bytes]  # a name that does not depend on the machine, and the content


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document, or all of it."""

    name: str  # of the document; it does not depend on the machine
    content: bytes  # never empty
    ends: bool  # whether the document ends with it
    read: int  # how much of the source's total has been read for it


def passages(name: str, blocks: Iterable[bytes], *, read: int | None = None) -> Iterator[Passage]:
    """The passages of one document. If the document is empty, there is none.

    Args:
        name: of the document.
        blocks: its content, in blocks of any length.
        read: how much of the source's total has been read with its last passage. Default: the bytes of each passage.
    """
    parts = cut(blocks)
    last = next(parts, None)
    if last is None:
        return
    for part in parts:
        yield Passage(name, last, ends=False, read=len(last) if read is None else 0)
        last = part
    yield Passage(name, last, ends=True, read=len(last) if read is None else read)


def in_blocks(content: bytes) -> Iterator[bytes]:
    """A content in memory, in blocks."""
    return (content[start : start + LONGEST] for start in range(0, len(content), LONGEST))


def cut(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of at most `LONGEST`, which end where a line ends, or a word, or at least a character."""
    kept = b""
    for block in blocks:
        kept += block
        while len(kept) > LONGEST:
            end = _last_end(kept)
            yield kept[:end]
            kept = kept[end:]
    if kept:
        yield kept


def whole(parts: Iterable[Passage]) -> Iterator[Document]:
    """The documents that the passages make."""
    contents: list[bytes] = []
    for part in parts:
        contents.append(part.content)
        if part.ends:
            yield part.name, b"".join(contents)
            contents.clear()


def character_start(content: bytes, position: int) -> int:
    """Return the position, or up to 3 bytes after it, where a character of UTF-8 begins."""
    starts = (at for at in range(position, position + 4) if content[at : at + 1] < b"\x80" or content[at] >= 0xC0)
    return next(starts, position)


def _last_end(text: bytes) -> int:
    """Return where to cut a text that is longer than a passage. At least 1."""
    line = text.rfind(b"\n", 0, LONGEST) + 1
    if line:
        return line
    word = text.rfind(b" ", 1, LONGEST)  # most tokenizers take a space together with the word after it
    return word if word > 0 else character_start(text, LONGEST - 3)
