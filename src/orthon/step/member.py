"""A parameter with what one step needs to know about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from orthon.algorithms import RULES, Rule
from orthon.algorithms.state import Entries, Entry, new_matrix_state, new_plain_state
from orthon.sharding import Layout, Layouts, Matrices, Stack, is_dtensor, local, takes_part
from orthon.step.names import parameter_names


@dataclass(eq=False)
class Member:
    """A parameter of which this rank holds a part, or all. From one step to the next, its gradient alone changes.

    Attributes:
        name: for errors, and as a seed.
        param: the parameter.
        grad: this rank's part of its gradient; None if there is none.
        group: its param group.
        rule: that updates it.
        layout: how it lies.
        matrices: how it is read as matrices, for a rule that takes them.
        averages: whether the replicas' gradients are their own, and averaged in this step.
    """

    name: str
    param: Tensor
    grad: Tensor | None
    group: dict[str, Any]
    rule: Rule
    layout: Layout
    matrices: Matrices | None
    averages: bool

    def compresses(self, stack: Stack) -> bool:
        """Return whether the rule averages over the replicas with less than the gradients of these matrices."""
        return self.averages and self.rule.compresses is not None and self.rule.compresses(stack.layout, self.group)

    @property
    def differs(self) -> bool:
        """Whether its state differs between replicas after the step."""
        return self.averages and self.matrices is not None and any(map(self.compresses, self.matrices.stacks))

    @property
    def own_state(self) -> list[str]:
        """The keys of the state that differs then."""
        first, *_ = self.entries.values()
        return [key for key, entry in first.items() if isinstance(entry, Entry) and entry.own]

    @cached_property
    def entries(self) -> dict[Stack, Entries]:
        """What the rule keeps of each stack of matrices."""
        assert self.matrices is not None
        return {stack: self.rule.entries(stack.layout.shape, self.group) for stack in self.matrices.stacks}

    def new_state(self, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return its state before the first step, of which a rule for matrices may have been `given` some."""
        if self.matrices is None:
            return new_plain_state(self.rule.entries(self.layout.shape, self.group), self.param, self.layout)
        seed = self.group.get("seed", 0)
        return new_matrix_state(self.entries, self.name, seed, self.param, self.matrices, given or {})

    def facts(self) -> dict[str, str]:
        """Return what all ranks that update the parameter must agree on."""
        options = {key: _plain(self.group[key]) for key in sorted(self.rule.options)}
        if self.rule.polar_dtype is not None:  # which depends on the processor
            storage = self.group["state_dtype"] or self.param.dtype
            options["dtype of polar factors"] = str(self.rule.polar_dtype(storage, self.layout, self.group))
        return {
            "shape": str(tuple(self.param.shape)),
            "dtype": str(self.param.dtype),
            "placements": str(getattr(self.param, "placements", None)),
            "algorithm": self.rule.name,
            **options,
        }


class _Known(NamedTuple):
    """What a param group was at the last step, and its parameters."""

    group: dict[str, Any]
    params: list[Tensor]
    options: list[Any]
    members: list[Member]


class Members:
    """The parameters of which this rank holds a part; what has not changed since the last step is not made anew.

    Args:
        layouts: of the parameters.
        sync_gradients: whether each rank's gradients are its own. A missing one counts as zero then.
        owner: the optimizer, for errors.
    """

    def __init__(self, layouts: Layouts, *, sync_gradients: bool, owner: str) -> None:
        self._layouts, self._sync_gradients, self._owner = layouts, sync_gradients, owner
        self._known: list[_Known] = []
        self._all: list[Member] = []

    def __call__(self, groups: Sequence[dict[str, Any]]) -> list[Member]:
        """Return them, with gradients and layouts as they are now: the same list while only gradients have changed.

        Raises:
            TypeError, ValueError, NotImplementedError: for a parameter that cannot be updated.
        """
        known = [self._of_group(index, group) for index, group in enumerate(groups)]
        if len(known) != len(self._known) or any(new is not old for new, old in zip(known, self._known, strict=True)):
            self._known, self._all = known, [member for of_group in known for member in of_group.members]
        for member in self._all:
            grad = member.param.grad
            if (
                grad is None
                or member.layout.mesh is not None
                or grad.layout != torch.strided
                or type(grad) is not Tensor
            ):
                grad = _local_gradient(member, self._owner)
            member.grad = grad
        return self._all

    def _of_group(self, index: int, group: dict[str, Any]) -> _Known:
        rule, params = RULES[group["algorithm"]], group["params"]
        options = [group[name] for name in rule.options if name not in _CHANGING]
        known = self._known[index] if index < len(self._known) else None
        if (
            known is not None
            and known.group is group
            and known.options == options
            and len(known.params) == len(params)
            and all(new is old for new, old in zip(params, known.params, strict=True))
            and all(map(self._lies_as_before, known.members))
        ):
            return known
        return _Known(group, list(params), options, list(self._made(index, group, rule)))

    def _lies_as_before(self, member: Member) -> bool:
        param, layout = member.param, member.layout
        if layout.mesh is None:  # quicker than to ask for the layout
            return param.shape == layout.shape and param.device == layout.device and not is_dtensor(param)
        return self._layouts(param) is layout

    def _made(self, index: int, group: dict[str, Any], rule: Rule) -> Iterator[Member]:
        for name, param in zip(parameter_names(group, index), group["params"], strict=True):
            if not takes_part(param):
                continue
            try:
                layout = self._layouts(param)
                matrices = self._layouts.matrices(layout, group["view"]) if rule.for_matrices else None
                if matrices is not None and rule.check_layout is not None:
                    for stack in matrices.stacks:
                        rule.check_layout(stack.layout, group)
            except (ValueError, NotImplementedError) as error:
                raise type(error)(f"{self._owner}: parameter {name!r}: {error}") from error
            averages = self._sync_gradients and layout.replicas.size > 1
            yield Member(name, param, None, group, rule, layout, matrices, averages)


def _local_gradient(member: Member, owner: str) -> Tensor | None:
    """Return this rank's part of the gradient, brought to the parameter's placements.

    Raises:
        TypeError: for a sparse gradient, or one that is a DTensor while the parameter is not.
        NotImplementedError: for placements that cannot be brought to the parameter's.
    """
    param, grad = member.param, member.param.grad
    if grad is None:
        return torch.zeros_like(local(param)) if member.averages and param.requires_grad else None
    where = f"{owner}: parameter {member.name!r}"
    if grad.layout != torch.strided:
        raise TypeError(
            f"{where}: its gradient should be dense, but is {grad.layout}; build the layer with sparse=False"
        )
    if is_dtensor(param) != is_dtensor(grad):
        raise TypeError(f"{where}: should be a DTensor if and only if its gradient is one, but that is {type(grad)}")
    if is_dtensor(grad):
        assert is_dtensor(param)
        if grad.device_mesh != param.device_mesh:
            raise NotImplementedError(
                f"{where}: its gradient lies on {grad.device_mesh}, but should lie on its own mesh {param.device_mesh}"
            )
        if grad.placements != param.placements:
            try:
                grad = grad.redistribute(param.device_mesh, param.placements)
            except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
                raise NotImplementedError(
                    f"{where}: its gradient's placements {grad.placements} should be {param.placements}, and "
                    f"DTensor cannot bring them there: {error}"
                ) from error
        grad = grad.to_local()
    return grad.wait() if isinstance(grad, AsyncCollectiveTensor) else grad


# Options that schedulers change from step to step; nothing is made that depends on them.
_CHANGING = {"lr", "weight_decay"}


def _plain(value: object) -> str:
    return str(float(value)) if isinstance(value, Tensor) else str(value)
