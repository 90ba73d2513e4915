"""A parameter with all that a step has to know about it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from orthon.algorithms import Counter, Entry, Rule
from orthon.algorithms.state import Entries
from orthon.sharding import Layout, Matrices, Stack, is_dtensor
from orthon.step.state import new_matrix_state, new_plain_state

# How many times as large as a gradient a sum may become: the momentum of 20 steps, times the norm of a matrix of
# 10,000 × 10,000 equal numbers.
_ROOM = 2.0**18


@dataclass(eq=False)
class Member:
    """A parameter of which this rank holds a shard, or all. From one step to the next, its gradient alone changes.

    Attributes:
        name: for errors.
        param: the parameter.
        grad: this rank's shard of its gradient; None if there is none.
        group: its param group.
        rule: that updates it.
        layout: how it lies.
        matrices: how it is read as matrices, for a rule that takes them.
        averages: whether the replicas' gradients are their own, and averaged in this step.
        seed_name: from which its random numbers follow; empty for its name.
        planned_for: what decides who works on what, besides: the machine and its memory.
    """

    name: str
    param: Tensor
    grad: Tensor | None
    group: dict[str, Any]
    rule: Rule
    layout: Layout
    matrices: Matrices | None
    averages: bool
    seed_name: str = ""
    planned_for: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Remember what tells quickly that the parameter lies as before."""
        self.seed_name = self.seed_name or self.name
        self.type: Any = type(self.param)
        param: Any = self.param
        self.spec: Any = param._spec if is_dtensor(param) else None
        self.dtype = self.param.dtype

    def compresses(self, stack: Stack) -> bool:
        """Return whether the rule averages over the replicas with less than the gradients of these matrices."""
        return self.averages and self.rule.work.compresses(stack.layout, self.group)

    @cached_property
    def differs(self) -> bool:
        """Whether its state differs between replicas after the step."""
        return self.averages and self.matrices is not None and any(map(self.compresses, self.matrices.stacks))

    @property
    def own_state(self) -> list[str]:
        """The keys of the state that differs then."""
        first, *_ = self.entries.values()
        return [key for key, entry in first.items() if isinstance(entry, Entry) and entry.own]

    @cached_property
    def entries(self) -> dict[Stack | None, Entries]:
        """What the rule keeps of each stack of matrices; for a rule that takes none, of the parameter, under None."""
        if self.matrices is None:
            return {None: self.rule.keeps(self.layout.shape, self.group)}
        return {stack: self.rule.keeps(stack.layout.shape, self.group) for stack in self.matrices.stacks}

    @cached_property
    def counters(self) -> dict[str, Counter]:
        """What counts the steps in its state, by key."""
        entries = next(iter(self.entries.values()), {})
        return {key: entry for key, entry in entries.items() if isinstance(entry, Counter)}

    @cached_property
    def counted(self) -> list[str]:
        """The keys of its state that count the steps, and are counted for the rule."""
        return [key for key, entry in self.counters.items() if entry.counted]

    @cached_property
    def limit(self) -> float:
        """The largest number of a gradient whose sums stay finite, over steps and over matrices, and its squares.

        In float16 the sums are clamped, and the squares are as in torch's own AdamW.
        """
        options = (self.group.get(key) for key in ("state_dtype", "product_dtype", "polar_dtype"))
        dtypes = {dtype for dtype in (self.param.dtype, *options) if dtype not in (None, torch.float16)}
        most = min((torch.finfo(dtype).max for dtype in dtypes), default=torch.finfo(torch.float32).max)
        entries = chain.from_iterable(of_stack.values() for of_stack in self.entries.values())
        if any(isinstance(entry, Entry) and entry.of_squares for entry in entries):
            return min(most / _ROOM, math.sqrt(most) / 2)
        return most / _ROOM

    def new_state(self, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return its state before the first step; what there is `given` of it remains."""
        given = given or {}
        if self.matrices is None:
            return {**new_plain_state(self.entries[None], self.param, self.layout), **given}
        entries = {stack: of_stack for stack, of_stack in self.entries.items() if stack is not None}
        return new_matrix_state(entries, self.seed_name, self.group.get("seed", 0), self.param, self.matrices, given)

    def facts(self) -> dict[str, str]:
        """Return what all ranks that update the parameter must agree on."""
        options = {key: _plain(self.group[key]) for key in sorted(self.rule.options)}
        storage = self.group.get("state_dtype") or self.param.dtype
        polar_dtype = self.rule.work.polar_dtype(storage, self.layout, self.group)
        if polar_dtype is not None:  # which depends on the processor
            options["dtype of polar factors"] = str(polar_dtype)
        return {
            "shape": str(tuple(self.param.shape)),
            "dtype": str(self.param.dtype),
            "placements": str(getattr(self.param, "placements", None)),
            "algorithm": self.rule.name,
            **options,
            **self.planned_for,
        }


def _plain(value: object) -> str:
    return str(float(value)) if isinstance(value, Tensor) else str(value)
