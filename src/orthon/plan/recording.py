"""What one rank computes and sends in a step, from pause to pause, recorded from the code that would run there."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from orthon.explain.dry_run import DryRun
from orthon.explain.temporaries import Temporaries
from orthon.linalg.device import meta_stands_for
from orthon.machines import Machine
from orthon.optimizers.mixed import MixedOptimizer
from orthon.plan.recorder import Recorder
from orthon.plan.tally import Tally
from orthon.plan.usual_answers import UsualAnswers
from orthon.sharding import Message, UnderWay, record_messages, run
from orthon.step.batches import Wave
from orthon.step.gradients import Gradients


class Segment(NamedTuple):
    """What a rank does between two pauses.

    Attributes:
        work: by phase.
        messages: the collectives that start at the end of it.
    """

    work: Mapping[str, Tally]
    messages: tuple[Message, ...]


class Trial(NamedTuple):
    """What a rank does in a wave.

    Attributes:
        segments: in order.
        temporary_bytes: the most at one time.
    """

    segments: tuple[Segment, ...]
    temporary_bytes: int


class RecordedStep(DryRun[Trial]):
    """A dry run of which each wave tells its segments.

    Args:
        optimizer: the optimizer.
        machine: on which the step is taken to run.
        rank: which rank.
    """

    as_usual = True

    def __init__(self, optimizer: MixedOptimizer, machine: Machine, *, rank: int) -> None:
        super().__init__(optimizer, machine, torch.device(machine.device), rank=rank)
        self._machine, self.rank = machine, rank

    def carry_out(self, wave: Wave) -> Trial:
        """Return the segments of a wave, and its temporary bytes, in a step that is not the first.

        In the first one, state moves to where a batch has it together.
        """
        with UsualAnswers():
            run([self.steps(wave)], at_once=1)
            under_way = UnderWay(self.steps(wave))
            segments, goes_on = [], True
            with record_messages() as messages, Temporaries() as temporaries, Recorder(self._machine) as recorder:
                while goes_on:
                    goes_on = under_way.go_on()
                    segments.append(Segment(recorder.taken(), tuple(messages)))
                    messages.clear()
        return Trial(tuple(segments), temporaries.bytes)

    def look_at_gradients(self) -> Trial:
        """Return what comes before the first wave: the pass that finds whether gradients are finite, and the agreement.

        Ranks that update parameters together tell each other the answer, with what else they have to agree on, as four
        integers (`step/agreement.py`).
        """
        with meta_stands_for(torch.device(self._machine.device)), Recorder(self._machine) as recorder:
            Gradients(self.members).quick()
        everyone = {member.layout.everyone.ranks: member.layout.everyone for member in self.members}
        lines = [line for ranks in everyone.values() for line in ranks.lines]
        around = [2 * 32 * (line.size - 1) / line.size for line in lines]
        answers = tuple(
            Message("sum", line.size, 4, 32, sent=wire, received=wire, line=line.ranks)
            for line, wire in zip(lines, around, strict=True)
        )
        return Trial((Segment(recorder.taken(), answers), Segment({}, ())), 0)
