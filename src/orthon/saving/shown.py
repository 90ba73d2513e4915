"""Values and texts of others, made short for messages: whatever they are, one line of bounded length comes out."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from orthon.step.words import some

ITEMS = 6  # of a list or dict that are shown
LEVELS = 3  # of lists in lists that are shown
TEXT = 120  # characters of a string that are shown
LINE = 1000  # characters of a message


def shown(value: object) -> str:
    """Return a value as Python would write it, but never more than a line of it.

    Lists are cut after some items and some levels, so that one that is deep, shared or contains itself takes no time.
    Of an object of another class than Python's plain ones, only the name of the class is shown.
    """
    return _shown(value, LEVELS)


def unquoted(value: object, *, limit: int = TEXT) -> str:
    """Return a value as `shown` does, but a string as people write it: without quotes, on one line of that length."""
    return one_line(value, limit=limit) if isinstance(value, str) else shown(value)


def listed(values: Iterable[Any]) -> str:
    """Return the first of some names as a list in words."""
    return some(list(values), most=20, said=shown) or "nothing"


def kind_of(value: object) -> str:
    """Return the name of the type of a value."""
    return one_line(type(value).__name__, limit=TEXT)


def one_line(text: str, *, limit: int = LINE) -> str:
    """Return a text as one line of at most `limit` characters, which moves no cursor and sets no color."""
    words = " ".join(text[: 8 * limit].split())
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words[: limit + 1])
    return plain if len(plain) <= limit and len(text) <= 8 * limit else f"{plain[: limit - 1]}…"


def printable(text: str) -> str:
    """Return a text of some lines, in which nothing but line ends and tabs moves the cursor or sets a color."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _shown(value: object, levels: int) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= TEXT else f"{value[: TEXT - 1]}…")
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"
    if value is None or type(value) in (bool, int, float, complex, torch.dtype, torch.device):
        return repr(value)
    if isinstance(value, Tensor):
        return f"a tensor of shape {_shown(tuple(value.shape), 1)}" if value.numel() != 1 else f"tensor({value.item()})"
    if isinstance(value, Mapping):
        return _items(((f"{_shown(k, levels - 1)}: {_shown(v, levels - 1)}") for k, v in value.items()), value, levels)
    if isinstance(value, list | tuple | set | frozenset):
        return _items((_shown(item, levels - 1) for item in value), value, levels)
    return f"a {kind_of(value)}"


def _items(texts: Iterable[str], of: Any, levels: int) -> str:
    """Return the items of a container between the brackets of its kind."""
    left, right = "()" if isinstance(of, tuple) else "[]" if isinstance(of, list) else "{}"
    if levels <= 0:
        return f"{left}…{right}" if len(of) else f"{left}{right}"
    first = [text for text, _ in zip(texts, range(ITEMS), strict=False)]
    if len(of) > ITEMS:
        first.append("…")
    comma = "," if isinstance(of, tuple) and len(of) == 1 else ""
    return f"{left}{', '.join(first)}{comma}{right}"
