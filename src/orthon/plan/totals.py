"""What the ranks do in a step, added up over its waves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthon.machines import Machine
from orthon.plan.recording import Segment, Trial
from orthon.plan.timeline import TimedWave
from orthon.sharding import Message

# The two links of a `Machine`, as people read them.
LINKS = ("within node", "between nodes")


class Totals:
    """What each rank does in all waves so far.

    Args:
        ranks: how many there are.
        machine: on which they run.
    """

    def __init__(self, ranks: int, machine: Machine) -> None:
        self._ranks, self._machine = ranks, machine
        self._sums: dict[str, Tensor] = {}

    def add(self, kinds: Sequence[int], trials: Sequence[Trial]) -> TimedWave:
        """Add a wave, and return how long its segments take.

        Args:
            kinds: for each rank which of the trials shows what it does.
            trials: of the kinds of ranks. All have as many segments.
        """
        indices = torch.tensor(kinds)
        each = [self._counts(trial) for trial in trials]
        for name in dict.fromkeys(name for counts in each for name in counts):
            of_kinds = torch.tensor([counts.get(name, 0.0) for counts in each], dtype=torch.float64)
            if name not in self._sums:
                self._sums[name] = torch.zeros(self._ranks, dtype=torch.float64)
            self._sums[name] += of_kinds[indices]
        return TimedWave(
            kinds=indices,
            work=torch.tensor([[_seconds(segment) for segment in t.segments] for t in trials], dtype=torch.float64),
            launches=torch.tensor(
                [[_launches(segment) * self._machine.launch for segment in trial.segments] for trial in trials],
                dtype=torch.float64,
            ),
            sending=[
                self._slowest([segment.messages for segment in segments])
                for segments in zip(*(trial.segments for trial in trials), strict=True)
            ],
        )

    def of(self, rank: int) -> dict[str, Any]:
        """Return what one rank does, an index, under the names that a `PlanRow` has for it."""
        sums = {name: float(values[rank]) for name, values in self._sums.items()}
        starts = {"flops": "flops ", "phases": "phase "}
        under = {
            field: {name.removeprefix(start): value for name, value in sums.items() if name.startswith(start) and value}
            for field, start in starts.items()
        }
        return {
            **under,
            "factoring": sums["factoring"],
            "traffic": sums["traffic"],
            "operations": int(sums["operations"]),
            "collectives": int(sums["collectives"]),
        }

    def wire(self) -> dict[str, float]:
        """Return for each link the most bytes that a rank sends, or receives if that is more."""
        most = {}
        for link in LINKS:
            ways = [self._sums[f"{way} {link}"] for way in ("sent", "received") if f"{way} {link}" in self._sums]
            most[link] = float(torch.stack(ways).max()) if ways else 0.0
        return most

    def _counts(self, trial: Trial) -> dict[str, float]:
        counts: dict[str, float] = {"factoring": 0.0, "traffic": 0.0, "operations": 0.0, "collectives": 0.0}

        def more(name: str, value: float) -> None:
            counts[name] = counts.get(name, 0.0) + value

        for segment in trial.segments:
            for phase, tally in segment.work.items():
                for rate, flops in tally.flops.items():
                    more(f"flops {rate}", flops)
                more(f"phase {phase}", tally.seconds)
                more("factoring", tally.factoring)
                more("traffic", tally.bytes)
                more("operations", tally.launches)
            for message in segment.messages:
                link = self._link(message)
                more(f"sent {link}", message.sent)
                more(f"received {link}", message.received)
                more("collectives", 1)
        return counts

    def _slowest(self, messages: Sequence[Sequence[Message]]) -> list[tuple[str, float]]:
        """Return over which link each collective goes, and how long it takes, from what each kind of rank sends."""
        found = []
        for those in zip(*messages, strict=True):
            seconds = [
                self._machine.sending_seconds(max(message.sent, message.received), message.line, kind=message.kind)
                for message in those
            ]
            found.append((self._link(those[0]), max(seconds)))
        return found

    def _link(self, message: Message) -> str:
        return LINKS[self._machine.link(message.line) is self._machine.between_nodes]


def _seconds(segment: Segment) -> float:
    return sum(tally.seconds for tally in segment.work.values())


def _launches(segment: Segment) -> int:
    return sum(tally.launches for tally in segment.work.values())
