"""A CUDA graph in emulation, on the CPU: the operations of one step, and the same again on the same memory.

What waits for a device raises, and what the host does beside operations (counting in Python, reading lr as a number) is
not repeated, both as in a graph. Wherever the host would look into a tensor, the path of accelerators runs; what is
written otherwise for CPUs only to be fast there stays so, and the kernels are the CPU's.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orthon.testing.invariants import accelerated

# Operations that wait for a device although their tags do not tell.
_WAITING = {"aten::_linalg_svd", "aten::_linalg_eigh", "aten::_linalg_check_errors", "aten::lift_fresh"}

# Methods that read memory without any operation.
_READING = {"tolist", "numpy", "cpu", "__array__"}


class HostReadError(RuntimeError):
    """The step reads or brings over a value, for which a graph cannot wait."""


class Graph:
    """The operations of a step.

    Args:
        step: is called once, on the memory that all replays use.
    """

    def __init__(self, step: Callable[[], Any]) -> None:
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        with (
            mock.patch("orthon.optimizers.mixed.is_capturing", return_value=True),
            accelerated(),
            _NoReading(),
            _Recorder(self),
        ):
            step()

    def __len__(self) -> int:
        return len(self._calls)

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, tags = func._schema.name, func.tags
        waits = torch.Tag.data_dependent_output in tags or name in _WAITING
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            waits |= any(index.dtype == torch.bool for index in tree_leaves(args[1]) if isinstance(index, Tensor))
        elif torch.Tag.dynamic_output_shape in tags:
            waits = True
        if waits:
            raise HostReadError(f"{name} waits for the device")
        result = func(*args, **kwargs)
        if not _is_view(func):
            self._calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations again, each with the same tensors for arguments and results."""
        for func, args, kwargs, result in self._calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and new is not old:
                    old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return self._graph.record(func, args, kwargs or {})


class _NoReading(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") in _READING:
            raise HostReadError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Return whether a function does nothing but give a new view of its argument."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
