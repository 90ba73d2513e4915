"""The memory that a computation takes for what it makes and does not keep."""

import itertools
import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Temporaries(TorchDispatchMode):
    """Counts the bytes of the storages that operations make within, on any device, meta included.

    What is still there at the end is not temporary: state, made or moved. What a kernel or a process group takes
    inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Threads of a process group may let go of a storage at any time.
        self._numbers = itertools.count()
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by id of the storage: its number
        self._events: list[tuple[int, int]] = []  # a storage's number, and its bytes, or minus these when it is gone

    @property
    def bytes(self) -> int:
        """The most bytes at a time of what is gone by now."""
        kept = {number for number, _ in list(self._alive.values())}
        now = most = 0
        for number, size in self._events:
            if number not in kept:
                now += size
                most = max(most, now)
        return most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation and note the storages that it makes."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = {id(storage): storage for storage in _storages(result) if id(storage) not in self._alive}
        if made:  # or given: what operations in place return, and views
            for storage in _storages((args, kwargs)):
                made.pop(id(storage), None)
            for storage in made.values():
                self._note(storage)
        return result

    def _note(self, storage: Any) -> None:
        key, number, size = id(storage), next(self._numbers), storage.nbytes()

        def gone(_: object) -> None:
            del self._alive[key]
            self._events.append((number, -size))

        self._alive[key] = number, weakref.ref(storage, gone)
        self._events.append((number, size))


def _storages(values: Any) -> list[Any]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
