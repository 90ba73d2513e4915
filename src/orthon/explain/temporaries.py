"""The memory of temporaries: what a computation makes and does not keep."""

import itertools
import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Temporaries(TorchDispatchMode):
    """Counts the bytes of the storages that operations make inside this context, on any device, meta included.

    What still exists at the end is not temporary, such as state that has been made or moved. What a kernel or a
    process group uses inside is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Threads of a process group may free a storage at any time. So events are collected first, and summed later.
        self._numbers = itertools.count()
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by id of the storage: its number
        self._events: list[tuple[int, int]] = []  # a storage's number, and its bytes; minus these when it is freed

    @property
    def bytes(self) -> int:
        """The most bytes at one time of the storages that have been freed by now."""
        kept = {number for number, _ in list(self._alive.values())}
        now = most = 0
        for number, size in self._events:
            if number not in kept:
                now += size
                most = max(most, now)
        return most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation, and note the storages that it makes."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = {id(storage): storage for storage in _storages(result) if id(storage) not in self._alive}
        if made:  # some may have been given to it: views, and what operations in place return
            for storage in _storages((args, kwargs)):
                made.pop(id(storage), None)
            for storage in made.values():
                self._note(storage)
        return result

    def _note(self, storage: Any) -> None:
        key, number, size = id(storage), next(self._numbers), storage.nbytes()

        def freed(_: object) -> None:
            del self._alive[key]
            self._events.append((number, -size))

        self._alive[key] = number, weakref.ref(storage, freed)
        self._events.append((number, size))


def _storages(values: Any) -> list[Any]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
