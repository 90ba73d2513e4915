"""Frozen values that remember what they have worked out: a changed copy of one must not answer with that."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, replace
from functools import cached_property
from typing import Any, cast, get_origin

import pytest
import torch
import torch.distributed as dist

import orthon
from orthon.sharding import Extent, Layout
from orthon.sharding.grid import Grid

READ_ONLY_TYPES = {"Mapping", "Sequence", "Set", "Iterable", "Collection"}


def frozen_classes() -> Iterator[type]:
    """Yield all frozen dataclasses of the package."""
    for module in pkgutil.walk_packages(orthon.__path__, "orthon."):
        if module.name.startswith("orthon.integrations.torchtitan"):  # imports what this environment lacks
            continue
        if module.name.endswith("__main__") or ".triton" in module.name:  # the first runs, the second needs a GPU
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and value.__module__ == module.name and dataclasses.is_dataclass(value):
                params: Any = value.__dict__["__dataclass_params__"]
                if params.frozen:
                    yield value


def memos(cls: type) -> list[str]:
    """Return the fields of a dataclass that nobody has to give, that can change, and that `replace` copies.

    A default factory that makes a mutable container is how a memo begins: empty, to be filled later. As a field, it
    would go to every changed copy of the value, where what it remembers is wrong. Options that are empty by default
    begin in the same way. But their type says that nobody writes to them, and mypy sees to it.
    """
    return [own.name for own in dataclasses.fields(cast(Any, cls)) if own.init and _may_be_filled(own)]


def _may_be_filled(own: "Field[Any]") -> bool:
    if own.default_factory is dataclasses.MISSING or type(own.default_factory()).__hash__ is not None:
        return False
    declared = get_origin(own.type) or own.type
    return getattr(declared, "__module__", "") != "collections.abc" or declared.__name__ not in READ_ONLY_TYPES


def test_no_memo_is_a_field() -> None:
    classes = list(frozen_classes())
    assert {Layout, Grid} < set(classes)
    assert len(classes) > 40
    assert {cls.__qualname__: found for cls in classes if (found := memos(cls))} == {}


def test_memos_are_found() -> None:
    @dataclass(frozen=True)
    class Remembers:
        made: dict[str, int] = field(default_factory=dict)
        hidden: Any = field(default_factory=list)
        seen: set[int] = field(default_factory=set)
        of_its_own: list[int] = field(default_factory=list, init=False)
        options: Mapping[str, int] = field(default_factory=dict)
        sizes: tuple[int, ...] = field(default_factory=tuple)

        @cached_property
        def remembered(self) -> dict[str, int]:
            return {}

    assert memos(Remembers) == ["made", "hidden", "seen"]
    first = Remembers()
    first.remembered["old"] = 1
    assert replace(first).remembered == {}


def row_of_ranks(size: int, here: int) -> Grid:
    """Return ranks along one axis. None of them communicates."""
    return Grid(torch.arange(size), (here,), (cast(dist.ProcessGroup, object()),))


@pytest.mark.parametrize("divide", [False, True])
def test_a_cut_layout_has_sides_of_its_own(divide: bool) -> None:
    whole = Layout((Extent(8), Extent(6)), row_of_ranks(4, 1), torch.device("cpu"))
    before = whole.side(0, divide=divide, unsynced=False)
    assert (before.size, before.copies.size, before.ranks.size) == (8, 4 if divide else 1, 4 if divide else 1)
    assert (whole.shard_shape, whole.largest_shard) == ((8, 6), (8, 6))

    cut = replace(whole, extents=(Extent(8, axes=(0,)), Extent(6)))
    side = cut.side(0, divide=divide, unsynced=False)
    assert (side.size, side.copies.size, side.ranks.size) == (2, 1, 4)
    assert cut.side(1, divide=divide, unsynced=False).summands.size == 4
    assert (cut.shard_shape, cut.largest_shard, cut.span(0)) == ((2, 6), (2, 6), (2, 4))
    assert cut.transposed.shard_shape == (6, 2)
    assert whole.side(0, divide=divide, unsynced=False) is before


def test_another_place_in_a_grid_has_ranks_of_its_own() -> None:
    grid = row_of_ranks(4, 1)
    assert grid.along([0]).index == 1
    assert replace(grid, coordinate=(3,)).along([0]).index == 3
