"""The function `plan`: what a step of each of several optimizers would take on a machine that need not be here."""

from collections.abc import Callable, Hashable, Mapping
from itertools import chain, islice

import torch
from torch import nn

from orthon.explain.dry_run import shape_of
from orthon.explain.explained_step import most_under_way
from orthon.machines import Machine, named_machine
from orthon.optimizers.mixed import MixedOptimizer
from orthon.plan.kinds import kinds_of_ranks, representatives
from orthon.plan.recording import RecordedStep, Trial
from orthon.plan.rows import Plan, PlanRow
from orthon.plan.timeline import simulated
from orthon.plan.totals import Totals
from orthon.sharding import local
from orthon.step.batches import Wave

# Called with how many optimizers are planned, of how many, and the name of the next one.
Progress = Callable[[int, int, str], None]


@torch.no_grad()
def plan(
    model: nn.Module,
    optimizers: Mapping[str, Callable[[nn.Module], MixedOptimizer]],
    *,
    machine: Machine | str,
    progress: Progress | None = None,
) -> Plan:
    """Return what a step of each optimizer would take; `print` shows it as a table.

    The code of the step itself runs, on tensors without storage, for each kind of rank. What it computes and sends is
    counted. Times follow from that and from the figures of the machine, see docs/plan.md.

    Args:
        model: whose parameters lie as they will: plain, or DTensors on a mesh of any size under the fake process group,
            on the device "meta" or with storage. `orthon.plan.cluster` makes such a mesh.
        optimizers: by name, functions that make an optimizer of Orthon's for the model, such as
            `{"Dion 1/4": Dion.for_model, "Muon": Muon.for_model}`.
        machine: a name of `orthon.machines.MACHINES` or a `Machine`.
        progress: is told about each optimizer before it is planned, and at the end.

    Raises:
        TypeError: for optimizers that are no functions by name, or make what is not one of Orthon's, or a machine that
            is none.
        ValueError: for a machine that is not known, or no optimizers.
    """
    found = named_machine(machine, "plan")
    if found is None:
        raise TypeError("plan: machine should be a name or an orthon.Machine, but is None")
    if not isinstance(optimizers, Mapping):
        raise TypeError(f"plan: optimizers should be a dict of functions by name, but is a {type(optimizers).__name__}")
    if not optimizers:
        raise ValueError("plan: optimizers should have at least one, but is empty")
    rows, ranks = [], 1  # an optimizer that sends nothing may know of this rank alone
    for done, (name, make) in enumerate(optimizers.items()):
        if progress is not None:
            progress(done, len(optimizers), name)
        if not callable(make):
            raise TypeError(
                f"plan: {name!r} should be a function that makes an optimizer, such as Dion.for_model, but is a "
                f"{type(make).__name__}"
            )
        optimizer = make(model)
        if not isinstance(optimizer, MixedOptimizer):
            raise TypeError(
                f"plan: {name!r} should make one of Orthon's optimizers, but makes a {type(optimizer).__name__}"
            )
        planned = _Planned(name, optimizer, found)
        rows.append(planned.row())
        ranks = max(ranks, planned.ranks)
    if progress is not None:
        progress(len(optimizers), len(optimizers), "")
    return Plan(machine=found, ranks=ranks, rows=tuple(rows))


class _Planned:
    """The step of one optimizer, by all ranks."""

    def __init__(self, name: str, optimizer: MixedOptimizer, machine: Machine) -> None:
        self._name, self._optimizer, self._machine = name, optimizer, machine
        members = optimizer.members()
        if not members:
            raise ValueError(f"plan: {name!r} should have parameters of which this rank has a shard, but has none")
        grids = {id(member.layout.grid): member.layout.grid for member in members}
        self._ranks = sorted({rank for grid in grids.values() for rank in grid.ranks.flatten().tolist()})
        # Where there are more ranks than experts, the first rank has one, and the last ones may have none.
        first = self._seen_by(self._ranks[0])
        # For each wave, what each rank does: a number for what the wave is like, and the rank's own part of it.
        numbers: dict[Hashable, int] = {}
        self._kinds, self._names = [], []
        for wave in chain.from_iterable(first.sets):
            self._names.append(_names(wave))
            shape = numbers.setdefault(shape_of(wave), len(numbers))
            parts = kinds_of_ranks(wave, self._ranks)
            self._kinds.append([numbers.setdefault((shape, part), len(numbers)) for part in parts])
        others = [index for index in representatives(self._kinds) if index > 0]
        self._steps = [first, *(self._seen_by(self._ranks[index]) for index in others)]
        self._trials = self._tried()

    def _tried(self) -> dict[int, Trial]:
        """Return what a rank of each kind does."""
        trials: dict[int, Trial] = {}
        for step in self._steps:
            place = self._ranks.index(step.rank)
            for kinds, wave in zip(self._kinds, self._in_place(step), strict=True):
                if wave is not None and kinds[place] not in trials:
                    trials[kinds[place]] = step.tried(wave)
        # Ranks that have no matrices wait for the others. They are taken to do the same meanwhile.
        for kinds in self._kinds:
            for kind in set(kinds):
                trials.setdefault(kind, trials[kinds[0]])
        return trials

    def _in_place(self, step: RecordedStep) -> list[Wave | None]:
        """Return for each wave of the first rank that of another, None where that one has no matrices of it."""
        waves = list(chain.from_iterable(step.sets))
        if len(waves) == len(self._names):
            return list(waves)
        found: list[Wave | None] = []
        for names in self._names:
            found.append(waves.pop(0) if waves and _names(waves[0]) == names else None)
        return found

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return len(self._ranks)

    def _seen_by(self, rank: int) -> RecordedStep:
        return RecordedStep(self._optimizer, self._machine, rank=rank)

    def row(self) -> PlanRow:
        """Return what there is to tell."""
        totals = Totals(self.ranks, self._machine)
        some = self._steps[0]
        sets = [[totals.add([0] * self.ranks, [some.look_at_gradients()])]]
        temporary_bytes, kinds_of_waves = 0, iter(self._kinds)
        for waves in some.sets:
            timed, taken = [], []
            for kinds in islice(kinds_of_waves, len(waves)):
                order = {kind: position for position, kind in enumerate(dict.fromkeys(kinds))}
                trials = [self._trials[kind] for kind in order]
                timed.append(totals.add([order[kind] for kind in kinds], trials))
                taken.append((max(trial.temporary_bytes for trial in trials), any(timed[-1].sending)))
            sets.append(timed)
            temporary_bytes = max(temporary_bytes, most_under_way(taken))
        course = simulated(sets, on_cpu=self._machine.device == "cpu")
        busiest = int(course.working.argmax())
        state, weights = (max(map(count, self._steps)) for count in (_state_bytes, _weight_bytes))
        peak = 2 * weights + state + temporary_bytes
        return PlanRow(
            optimizer=self._name,
            seconds=course.seconds,
            mean_seconds=float(course.ends.mean()),
            busiest=self._ranks[busiest],
            working=float(course.working.max()),
            exposed=course.exposed,
            hidden=max(0.0, course.sending - course.exposed),
            **totals.of(busiest),
            wire=totals.wire(),
            state_bytes=state,
            temporary_bytes=temporary_bytes,
            peak_bytes=peak,
            fits=peak <= self._machine.memory,
        )


def _names(wave: Wave) -> list[list[str]]:
    return [[piece.member.name for piece in batch.pieces] for batch in wave]


def _weight_bytes(step: RecordedStep) -> int:
    return sum(local(member.param).nbytes for member in step.members)


def _state_bytes(step: RecordedStep) -> int:
    return sum(local(value).nbytes for state in step.states.values() for value in state.values())
