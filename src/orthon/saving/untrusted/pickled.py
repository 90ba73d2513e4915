"""A pickle read as data. Nothing is imported, called or changed: what a pickle would make is only described.

Python's own unpickler looks up and calls what a pickle names. Even with a list of allowed names it can set attributes
of the classes themselves, take gigabytes for one number in the file, and hash tuples that are nested deeply enough to
end the process. This reader knows the few instructions that torch's files consist of, and makes plain values of them.
"""

import gc
import struct
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from typing import Any

from orthon.saving.shown import one_line
from orthon.saving.untrusted.bounded import check_bounded
from orthon.saving.untrusted.errors import DamagedError, RefusedError

_BYTE, _SHORT, _INT, _LONG = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q")
_SIGNED, _DOUBLE = Struct("<i"), Struct(">d")
_STACK = 100_000  # values that wait to be put together; pickle writes lists and dicts in parts of 1000


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that a pickle names."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What a pickle keeps outside of itself; torch's files keep the numbers of tensors so."""

    id: Any


class Pairs(list[tuple[Any, Any]]):
    """The keys and values of a dict, in order. No key is hashed."""


class Made:
    """An object that a pickle would make.

    Attributes:
        named: the class or function that would be called.
        args: with these arguments.
        state: what would then be set in it; None if nothing.
        items: what would be put into it by keys.
    """

    __slots__ = ("args", "items", "named", "state")

    def __init__(self, named: Named, args: tuple[Any, ...]) -> None:
        self.named, self.args, self.state, self.items = named, args, None, Pairs()


def parts(value: Any) -> Iterable[Any]:
    """Return what a value of a pickle consists of; nothing if it is plain."""
    if isinstance(value, Made):
        return [part for part in (value.args, value.state, value.items) if part]
    if isinstance(value, Stored):
        return (value.id,)
    return value if isinstance(value, list | tuple) else ()


def read_pickle(content: bytes, *, names: Container[tuple[str, str]], what: str) -> Any:
    """Return the value of a pickle.

    It consists of None, bool, int, float, str, tuple, list, `Pairs`, `Named`, `Made` and `Stored` alone. It is at most
    64 levels deep, and no larger than the file can mean, so that it can be walked by simple functions.

    Args:
        content: of the file.
        names: modules and names of what it may name.
        what: the file is, for errors.

    Raises:
        RefusedError: it is damaged, or has anything else in it.
    """
    reader = _Reader(content, names, what)
    try:
        with _no_garbage():
            value = reader.read()
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise DamagedError("it is damaged") from error
    check_bounded(value, children=parts, nodes=16 * len(content) + 1000)
    return value


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Look for no garbage. All that is read is kept, and to walk it again and again would take most of the time."""
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looked:
            gc.enable()


class _Reader:
    def __init__(self, content: bytes, names: Container[tuple[str, str]], what: str) -> None:
        self.content, self.names, self.what = content, names, what
        self.place = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        content, instructions = self.content, _INSTRUCTIONS
        while True:
            code = content[self.place]
            self.place += 1
            if code == _STOP:
                break
            act = instructions.get(code)
            if act is None:
                raise RefusedError(f"it has the instruction {bytes([code])!r}, which is in no {self.what}")
            act(self)
            if len(self.stack) > _STACK or len(self.below) > _STACK:
                raise DamagedError("it is damaged")
        if len(self.stack) != 1 or self.below or self.place != len(content):
            raise DamagedError("it is damaged")
        return self.stack[0]

    def number(self, form: Struct) -> Any:
        """Take a number."""
        [value] = form.unpack_from(self.content, self.place)
        self.place += form.size
        return value

    def bytes(self, count: int) -> bytes:
        """Take some bytes."""
        if count > len(self.content) - self.place:
            raise DamagedError("it is damaged")
        self.place += count
        return self.content[self.place - count : self.place]

    def text(self, form: Struct) -> None:
        # Paths that are not UTF-8 have surrogates in them.
        self.stack.append(str(self.bytes(self.number(form)), "utf-8", "surrogatepass"))

    def long(self) -> None:
        count = self.number(_BYTE)
        if count > 16:
            raise RefusedError("it has a huge number")
        self.stack.append(int.from_bytes(self.bytes(count), "little", signed=True))

    def skip(self, count: int) -> None:
        self.bytes(count)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """Take the values since the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise DamagedError("it is damaged")
        self.stack.append(self.memo[index])

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedError("it appends to what is no list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if type(target) is Made else target
        if type(items) is not Pairs or len(values) % 2:
            raise RefusedError("it sets a key in what is no dict")
        items.extend(zip(values[::2], values[1::2], strict=True))

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise DamagedError("it is damaged")
        if module == "__builtin__":  # its name in Python 2, which is written up to protocol 2
            module = "builtins"
        if (module, name) not in self.names:
            named = one_line(f"{module}.{name}", limit=120)
            raise RefusedError(f"it names {named}, which is no part of {self.what}")
        self.stack.append(Named(module, name))

    def name_in_lines(self) -> None:
        lines = []
        for _ in range(2):
            end = self.content.find(b"\n", self.place, self.place + 1000)
            if end < 0:
                raise DamagedError("it is damaged")
            lines.append(str(self.content[self.place : end], "utf-8"))
            self.place = end + 1
        self.name(*lines)

    def name_on_stack(self) -> None:
        name = self.stack.pop()
        self.name(self.stack.pop(), name)

    def make(self) -> None:
        args, named = self.stack.pop(), self.stack.pop()
        if type(named) is not Named or type(args) is not tuple:
            raise RefusedError("it calls what is no class or function")
        self.stack.append(Made(named, args))

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) is not Made or made.state is not None:  # above all, no class may be changed
            raise RefusedError("it changes what is no new object")
        made.state = state


_STOP = ord(".")
_INSTRUCTIONS: dict[int, Callable[[_Reader], Any]] = {
    ord(letter): act
    for letter, act in {
        "\x80": lambda r: r.skip(1),  # number of the protocol
        "\x95": lambda r: r.skip(8),  # length of a frame
        "N": lambda r: r.stack.append(None),
        "\x88": lambda r: r.stack.append(True),
        "\x89": lambda r: r.stack.append(False),
        "K": lambda r: r.stack.append(r.number(_BYTE)),
        "M": lambda r: r.stack.append(r.number(_SHORT)),
        "J": lambda r: r.stack.append(r.number(_SIGNED)),
        "\x8a": _Reader.long,
        "G": lambda r: r.stack.append(r.number(_DOUBLE)),
        "\x8c": lambda r: r.text(_BYTE),
        "X": lambda r: r.text(_INT),
        "\x8d": lambda r: r.text(_LONG),
        "(": _Reader.mark,
        ")": lambda r: r.stack.append(()),
        "\x85": lambda r: r.stack.append((r.stack.pop(),)),
        "\x86": lambda r: r.stack.append((r.stack.pop(-2), r.stack.pop())),
        "\x87": lambda r: r.stack.append((r.stack.pop(-3), r.stack.pop(-2), r.stack.pop())),
        "t": lambda r: _onto(r, tuple(r.to_mark())),
        "]": lambda r: r.stack.append([]),
        "a": lambda r: r.append([r.stack.pop()]),
        "e": lambda r: r.append(r.to_mark()),
        "}": lambda r: r.stack.append(Pairs()),
        "s": lambda r: r.set_items([r.stack.pop(-2), r.stack.pop()]),
        "u": lambda r: r.set_items(r.to_mark()),
        "\x94": lambda r: r.put(len(r.memo)),
        "q": lambda r: r.put(r.number(_BYTE)),
        "r": lambda r: r.put(r.number(_INT)),
        "h": lambda r: r.get(r.number(_BYTE)),
        "j": lambda r: r.get(r.number(_INT)),
        "c": _Reader.name_in_lines,
        "\x93": _Reader.name_on_stack,
        "R": _Reader.make,
        "\x81": _Reader.make,
        "b": _Reader.build,
        "Q": lambda r: r.stack.append(Stored(r.stack.pop())),
    }.items()
}


def _onto(reader: _Reader, value: Any) -> None:
    reader.stack.append(value)
