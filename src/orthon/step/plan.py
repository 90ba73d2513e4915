"""The plan of a step: all that stays the same from one step to the next, valid or made anew."""

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.algorithms.rule import options_of, rule_for
from orthon.linalg.device import is_readable
from orthon.machines import Machine, as_machine
from orthon.sharding import Layout, Layouts, Ranks, run, takes_part
from orthon.step.agreement import Agreement
from orthon.step.batches import PlannedBatch, Wave
from orthon.step.gates import Gates
from orthon.step.gradients import Gradients, check_devices, check_numbers, take_gradients
from orthon.step.history import History
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member
from orthon.step.names import parameter_names, seed_names
from orthon.step.options import OptionCheck
from orthon.step.prepare import make_states
from orthon.step.update import update
from orthon.step.waves import WAVE_MEMORY, sets_of_waves

States = MutableMapping[Tensor, dict[str, Any]]

# Waves under way at the same time: the matrices of one arrive, and the results of another return, while one computes.
AT_ONCE = 3


@dataclass(eq=False)
class Plan:
    """What a step does.

    Attributes:
        members: the parameters of which this rank holds a shard, with the gradients of this step.
        agreement: what the ranks must agree on.
        is_new: whether there has been no step yet on these layouts.
        gradients: of the members.
        sets: the batches in waves, and these in sets that the same ranks communicate about.
    """

    members: list[Member]
    agreement: Agreement
    is_new: bool
    gradients: Gradients
    sets: list[list[Wave]]

    @property
    def batches(self) -> Iterator[PlannedBatch]:
        """All batches."""
        return (batch for waves in self.sets for wave in waves for batch in wave)


class Planner:
    """Makes the plan of a step, anew where something that it depends on has changed. `plan` decides that alone.

    Args:
        replicas: the ranks that train on other data, if the user names them.
        sync_gradients: whether each rank's gradients are its own. A missing one counts as zero then.
        check: of the options, with the optimizer's name for errors.
        machine: on which the ranks run; None for what is found on this one.
        wave_memory: bytes that the matrices which one rank owns may take in a wave; None for a part of the device's.
        beside: the ranks that hold shards of frozen parameters beside these, and their device, if they are known.
    """

    def __init__(
        self,
        replicas: dist.ProcessGroup | None,
        *,
        sync_gradients: bool,
        check: OptionCheck,
        machine: Machine | str | None = None,
        wave_memory: float | None = None,
        beside: tuple[Ranks, torch.device] | None = None,
    ) -> None:
        self.layouts = Layouts(replicas)
        self._sync_gradients, self._check, self._owner = sync_gradients, check, check.owner
        self._machine, self._wave_memory, self._beside = machine, wave_memory, beside
        self._described: dict[Machine, dict[str, str]] = {}
        self._known: list[_KnownGroup] = []
        self._members: list[Member] = []
        self._plan: Plan | None = None
        self._kinds: list[Any] = []  # of the gradients for which the batches were made
        self._agreed: tuple[list[int], Agreement] | None = None  # on these layouts
        self._with_state = -1  # how many parameters had a state when all of the plan had one
        self._been_through: set[tuple[int, int]] = set()  # kinds of batches that have been through a step
        self._stepped: Plan | None = None  # the plan of the last step
        self._history = History(check.owner)

    def members(self, groups: Sequence[dict[str, Any]]) -> list[Member]:
        """Return the parameters of which this rank holds a shard, with gradients and layouts as they are now.

        It is the same list as before while nothing but gradients has changed.

        Raises:
            TypeError, ValueError, NotImplementedError: for an option that has been changed to what is not allowed, or a
                parameter that cannot be updated.
        """
        known = self._known[: len(groups)]
        for index, group in enumerate(groups):
            if index >= len(known) or not known[index].is_valid(group, self.layouts):
                made = partial(self._made, parameter_names(groups)[index], index, group)
                known[index : index + 1] = [_KnownGroup(group, index, self._check, made)]
        if known != self._known:
            self._known, self._members = known, [member for of_group in known for member in of_group.members]
        take_gradients(self._members, self._owner)
        return self._members

    def plan(self, groups: Sequence[dict[str, Any]], states: States) -> Plan:
        """Return the plan of the next step.

        Raises:
            RuntimeError: if parameters have changed so that their state is lost or does not fit any more.
            ValueError: for a gradient on another device than its parameter, or without numbers, on meta.
        """
        members = self.members(groups)
        if self._check.rates.watching:
            self._check.rates.look(groups)
        kinds: list[Any] = []
        for member in members:
            kinds.append(None if member.grad is None else (member.grad.dtype, member.grad.device))
        plan = self._plan
        if plan is not None and plan.members is members and kinds == self._kinds:
            return plan
        check_devices(members, self._owner)
        if plan is None or plan.members is not members:
            self._history.check(members, groups, states)
        check_numbers(members, self._owner)
        agreement, is_new = self._agreement(members)
        self._plan = Plan(members, agreement, is_new, Gradients(members), self.waves(members))
        self._kinds, self._with_state = kinds, -1
        return self._plan

    def waves(self, members: Sequence[Member]) -> list[list[Wave]]:
        """Return the waves of a step in which these parameters have gradients."""
        if not members:
            return []
        machine = self.machine(members[0].layout)
        return sets_of_waves(members, machine, self._memory(machine))

    def _memory(self, machine: Machine) -> float:
        return WAVE_MEMORY * machine.memory if self._wave_memory is None else self._wave_memory

    def _planned_for(self, layout: Layout) -> dict[str, str]:
        """Return what ranks must agree on, as it decides who works on what."""
        machine = self.machine(layout)
        if machine not in self._described:
            self._described[machine] = {"machine": str(machine), "wave_memory": str(self._memory(machine))}
        return self._described[machine]

    def machine(self, layout: Layout) -> Machine:
        """Return the machine on which parameters of a layout are."""
        device = layout.device
        if device.type == "meta":
            device = torch.device("cpu" if layout.mesh is None else layout.mesh.device_type)
        return as_machine(self._machine, device)

    def prepare(self, plan: Plan, states: States, gates: Gates) -> None:
        """Make the state that parameters lack, and count their steps where a rule asks for that."""
        if self._with_state != len(states):
            make_states(plan.batches, plan.members, states)
            self._with_state = len(states)
        for member in plan.members:
            if member.grad is None:
                continue
            for key in member.counted:
                state, gate = states[member.param], gates.get(member.grad.device)
                if gate is not None:
                    state[key] = state[key].to(gate.device)
                state[key] += 1 if gate is None else gate

    def carry_out(self, plan: Plan, states: States, gates: Gates, scale: LossScale) -> None:
        """Update all batches."""
        # One set of ranks after the other: each of its ranks has the same waves, but other sets have others.
        for waves in plan.sets:
            # The first time, one by one: process groups are made, which nothing else in flight may disturb.
            kinds = set(map(attrgetter("kind"), chain.from_iterable(waves)))
            at_once = AT_ONCE if kinds <= self._been_through else 1
            begin = partial(update, states=states, gates=gates, scale=scale)
            run((map(begin, wave) for wave in waves), at_once=at_once)
            self._been_through |= kinds
        if self._stepped is not plan:
            self._stepped = plan
            self._history.remember(plan.members)
        plan.is_new = False

    def _made(self, names: Sequence[str], index: int, group: dict[str, Any]) -> Iterator[Member]:
        self._history.check_names(names, group, index)
        for name, seed, param in zip(names, seed_names(group, index), group["params"], strict=True):
            if not takes_part(param):
                continue
            rule = rule_for(param, group)
            try:
                layout = self.layouts.of(param)
                matrices = self.layouts.matrices(layout, group["view"]) if rule.work.takes_matrices else None
                for stack in () if matrices is None else matrices.stacks:
                    rule.work.check_layout(stack.layout, group)
            except (ValueError, NotImplementedError) as error:
                raise type(error)(f"{self._owner}: parameter {name!r}: {error}") from error
            averages = self._sync_gradients and layout.replicas.size > 1
            planned_for = {} if layout.everyone.size == 1 else self._planned_for(layout)
            yield Member(name, param, None, group, rule, layout, matrices, averages, seed, planned_for)

    def _agreement(self, members: list[Member]) -> tuple[Agreement, bool]:
        """Return what the ranks must agree on, and whether that is new: whether the layouts are others."""
        key = [id(member.layout) for member in members]
        if self._agreed is not None and self._agreed[0] == key:
            return self._agreed[1], self._plan is not None and self._plan.is_new
        self._agreed = key, Agreement(members, self._owner, self._beside)
        return self._agreed[1], True


class _KnownGroup:
    """A param group as the last step saw it. What has changed since is checked, and nothing else.

    Args:
        group: the group, with all options.
        index: its position.
        check: of its options.
        made: returns its members.

    Raises:
        TypeError, ValueError, NotImplementedError: for an option or a parameter that cannot be used.
    """

    def __init__(
        self, group: dict[str, Any], index: int, check: OptionCheck, made: Callable[[], Iterable[Member]]
    ) -> None:
        self.group, self._index, self._cycled = group, index, check.cycled
        check.complete(group, index, by_schedule=True)
        self.members = list(made())
        self._where = check.label(group, index)
        self._params = list(group["params"])
        self._size = len(group)
        self._options = options_of(group)
        self._names = [name for name in ("algorithm", "others") if name in group] + list(self._options)
        self._get = itemgetter(*self._names)
        self._look()

    def is_valid(self, group: dict[str, Any], layouts: Layouts) -> bool:
        """Return whether the members can be used again, after checking what a scheduler has changed.

        Raises:
            TypeError, ValueError: for a value of a scheduler that is not allowed.
        """
        if self.group is not group or len(self._params) != len(group["params"]):
            return False
        if "betas" in self._options and "momentum" in group:
            self._cycled.follow(group, self._index)
        try:
            now = self._get(group)
        except KeyError:  # an option has been taken away
            return False
        if (self._may_change or not all(map(is_, self._values, now))) and not self._takes(now):
            return False
        if len(group) != self._size:
            return False
        for old, new in zip(self._params, group["params"], strict=True):
            if old is not new:
                return False
        for member in self.members:
            if _lies_as_before(member):
                continue
            if member.param.dtype != member.dtype or layouts.of(member.param) is not member.layout:
                return False
        return True

    def _takes(self, values: Sequence[Any]) -> bool:
        """Return whether all that has changed are values of a scheduler, after checking these."""
        for name, value, now in zip(self._names, self._values, values, strict=True):
            option = self._options.get(name)
            if option is None or not option.scheduled:
                if type(now) is not type(value) or now != value:
                    return False
            elif now is not value or (isinstance(now, Tensor) and is_readable(now)):  # which may change in place
                self.group[name] = option.check(name, now, self._where, by_schedule=True)
        self._look()
        return True

    def _look(self) -> None:
        """Remember the values that there are now."""
        self._values = self._get(self.group)
        self._may_change = any(isinstance(value, Tensor) for value in self._values)
        self._cycled.look(self.group, self._index)


def _lies_as_before(member: Member) -> bool:
    """Return whether a parameter surely lies as its layout says. That is quick, and may miss some that do."""
    param: Any = member.param
    if type(param) is not member.type or param.dtype != member.dtype or param.device != member.layout.device:
        return False
    return bool(param.shape == member.layout.shape if member.spec is None else param._spec is member.spec)
