"""How many bytes an operation of torch reads and writes, how many are new memory, and how often a kernel starts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthon.linalg.device import device_type
from orthon.sharding import local

aten = torch.ops.aten

# What writes all of its first argument without reading it.
_OVERWRITE = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.random_, aten.bernoulli_}
_OVERWRITE |= {aten._foreach_copy_, aten._foreach_zero_}

# What moves nothing, though its schema does not call it a view: empty memory, metadata, and views of what is new.
_NO_TRAFFIC = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._local_scalar_dense,  # the host reads one number
}
_NO_TRAFFIC |= {aten.resize_, aten.set_, aten._unsafe_view, aten.lift_fresh, aten.is_same_size}

# What reads as many numbers of its first argument as the result has, and not all of them.
_PICK = {aten.index_select, aten.gather, aten.index, aten.take, aten.embedding, aten.masked_select}

# What writes as many numbers of its first argument as it is given, and not all; and whether it reads them before.
_PUT = {aten.index_copy_: False, aten.index_put_: False, aten.scatter_: False}
_PUT |= {aten.index_add_: True, aten.scatter_add_: True}

# How torch's kernels over lists work on GPUs (aten/src/ATen/native/cuda/MultiTensorApply.cuh): so many tensors a launch
# for 1, 2, ... lists, and so many blocks, each of so many numbers.
_TENSORS_A_LAUNCH = (110, 64, 48, 36, 30)
_BLOCKS_A_LAUNCH = 320
_NUMBERS_A_BLOCK = 65536


class Traffic(NamedTuple):
    """What an operation moves.

    Attributes:
        bytes: that are read and written, both counted.
        fresh: bytes of the memory that the result takes anew.
        launches: of kernels.
        reorders: whether numbers that lie side by side do so no longer in the result, as in a transposed copy.
    """

    bytes: int
    fresh: int
    launches: int
    reorders: bool


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the schema of an operation tells.

    Attributes:
        moves: whether it moves anything.
        written: the places of the arguments that it writes, and whether it reads them before.
        is_list: whether it works on lists of tensors.
        is_fused: whether it is the whole step of an optimizer on such lists.
    """

    moves: bool
    written: dict[int, bool]
    is_list: bool
    is_fused: bool


@cache
def _kind_of(func: Any) -> _Kind:
    schema, packet = func._schema, func.overloadpacket
    is_list, is_fused = (schema.name.startswith(f"aten::{start}") for start in ("_foreach", "_fused"))
    written = {}
    for place, argument in enumerate(schema.arguments):
        info = argument.alias_info
        # The fused operations of torch.optim write the gradients only where a scale is given, which Orthon never does.
        if info is None or not info.is_write or argument.kwarg_only or (is_fused and argument.name == "grads"):
            continue
        written[place] = packet not in _OVERWRITE
    is_view = any(returned.alias_info is not None and not returned.alias_info.is_write for returned in schema.returns)
    return _Kind(not is_view and packet not in _NO_TRAFFIC, written, is_list or is_fused, is_fused)


def traffic_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Traffic:
    """Return what an operation moves.

    Of the inputs each number counts once, however often it is read: a number that is expanded, and a tensor that is
    given twice. What a kernel needs inside does not count. An operation over lists launches as torch does: on GPUs
    several tensors at a time, elsewhere one by one.

    Args:
        func: the overload.
        args: its arguments.
        kwargs: its arguments by name.
        result: of it.
    """
    kind = _kind_of(func)
    given: set[Any] = set()
    read: set[Any] = set()
    moved = 0
    for place, argument in enumerate(args):
        for x in _tensors(argument):
            where = _memory_of(x)
            given.add(where[0])
            if place in kind.written:
                moved += where[2] * (1 + kind.written[place])
                read.add(where)
            elif where not in read:
                moved += where[2]
                read.add(where)
    for argument in kwargs.values():  # only what is written, behind the star
        for x in _tensors(argument):
            where = _memory_of(x)
            given.add(where[0])
            moved += where[2]
    fresh = 0
    for x in _tensors(result):
        cdata, _, size = _memory_of(x)
        if cdata not in given:
            given.add(cdata)
            fresh += x.untyped_storage().nbytes()
            moved += size
    if not kind.moves:
        return Traffic(0, fresh, 0, False)
    moved += _less(func.overloadpacket, args, kwargs, result)
    launches = _launches(args, result, is_fused=kind.is_fused) if kind.is_list else 1
    return Traffic(moved, fresh, launches, _reorders(args, result))


def _less(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Return what is to be added, less than zero, for an operation that touches only some of its first argument."""
    if packet in _PICK:
        return int(result.numel() * result.element_size() - _memory_of(args[0])[2])
    if packet in _PUT:
        into = args[0]
        given = [x for x in _tensors((*args[1:], *kwargs.values())) if x.dtype == into.dtype] or [args[2]]
        touched = given[-1].numel() * into.element_size()
        reads = _PUT[packet] or bool(kwargs.get("accumulate", False))
        return int(touched * (1 + reads) - 2 * _memory_of(into)[2])
    return 0


def _reorders(args: tuple[Any, ...], result: Any) -> bool:
    """Return whether an input has its numbers side by side along another dimension than the result."""
    if not isinstance(result, Tensor) or result.ndim < 2:
        return False
    result = local(result)
    inner = _innermost(result)
    given = args[0] if args and isinstance(args[0], list | tuple) else args
    return inner is not None and any(
        x.ndim > 1 and x.numel() <= result.numel() and _innermost(x) not in (inner, None) for x in _tensors(given)
    )


def _innermost(x: Tensor) -> int | None:
    """Return the dimension along which numbers lie side by side, counted from the last; None if there is none."""
    return next(
        (d - x.ndim for d, (n, s) in enumerate(zip(x.shape, x.stride(), strict=True)) if s == 1 and n > 1), None
    )


def _launches(args: tuple[Any, ...], result: Any, *, is_fused: bool) -> int:
    lists = [
        each for each in (*args, result) if isinstance(each, list | tuple) and each and isinstance(each[0], Tensor)
    ]
    if not lists:
        return 1
    first = lists[0]
    if is_fused:
        del lists[-1]  # the numbers of steps, which travel apart
    is_quick = is_fused or len({x.dtype for each in lists for x in each}) == 1
    if device_type(first[0].device) != "cuda" or not is_quick:
        return len(first)
    at_once = _TENSORS_A_LAUNCH[min(len(lists), len(_TENSORS_A_LAUNCH)) - 1]
    blocks: int = sum(math.ceil(x.numel() / _NUMBERS_A_BLOCK) for x in first)
    return max(1, math.ceil(len(first) / at_once), math.ceil(blocks / _BLOCKS_A_LAUNCH))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument or a result, which may be a list of tensors; of DTensors this rank's shards."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, Tensor):
            yield local(each)


def _memory_of(x: Tensor) -> tuple[Any, int, int]:
    """Return the storage of a tensor, where it starts there, and how many bytes it has there, repeated ones once."""
    size = x.element_size()
    for length, stride in zip(x.shape, x.stride(), strict=True):
        if stride or not length:
            size *= length
    return x.untyped_storage()._cdata, int(x.storage_offset()), size
