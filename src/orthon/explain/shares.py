"""What each rank does of a step: its work on matrices, and what it sends and receives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orthon.explain.loads import Load
from orthon.explain.places import places_of
from orthon.machines import Machine
from orthon.sharding import Message
from orthon.step.batches import PlannedBatch

# How many ranks are tried to find the one that sends and receives the most.
TRIED = 4


@dataclass(frozen=True)
class Share:
    """What one rank does of a step, without what it does to each number by itself.

    Attributes:
        rank: its global rank.
        products: the floating-point operations of its large products, as the rules estimate them.
        factoring: those of its factorizations of small matrices.
        sent: the bytes that leave it.
        received: the bytes that come to it.
        working: about how many seconds the operations take.
        sending: about how many seconds the collectives take. One wave sends while another is worked on.
    """

    rank: int
    products: float
    factoring: float
    sent: float
    received: float
    working: float
    sending: float


class Shares:
    """The shares of the ranks, as they follow from a plan.

    Args:
        batches: of a step, as any of the ranks plans it.
        machine: on which the ranks run.
    """

    def __init__(self, batches: Iterable[PlannedBatch], machine: Machine) -> None:
        self._machine = machine
        self._loads: list[tuple[dict[int, tuple[int, ...]], Load]] = []
        self._shared: set[tuple[int, ...]] = set()  # sets of ranks
        places: dict[int, dict[int, tuple[int, ...]]] = {}
        for batch in batches:
            member, layout = batch.pieces[0].member, batch.pieces[0].layout
            if not batch.of_matrices or not member.rule.work.routes(layout, member.group):
                continue
            if len(batch.ranks) > 1:
                self._shared.add(batch.ranks)
            if id(layout.grid) not in places:
                places[id(layout.grid)] = places_of(layout)
            self._loads.append((places[id(layout.grid)], Load(batch, machine)))

    def of(self, rank: int, messages: Sequence[Message]) -> Share:
        """Return the share of a rank, with the messages that it sends and receives."""
        products, factoring, working = self._work(rank)
        sent, received = sum(message.sent for message in messages), sum(message.received for message in messages)
        seconds = [
            self._machine.sending_seconds(max(message.sent, message.received), message.line, kind=message.kind)
            for message in messages
        ]
        return Share(rank, products, factoring, sent, received, working, sum(seconds))

    def busiest(self, me: int) -> tuple[int, list[int]]:
        """Return which rank works the longest, and some ranks one of which sends and receives the most.

        The first is this rank, `me`, unless another works longer. They are of those that have shards of all the
        matrices on which several ranks work. How much they send and receive is estimated: of ranks with the most
        different estimates comes one each.
        """
        ranks = sorted(set.intersection(*map(set, self._shared)), key=lambda rank: rank != me) if self._shared else [me]
        works = {rank: _rounded(self._work(rank)[-1]) for rank in ranks}
        volumes: dict[float, int] = {}
        for rank in ranks:
            volumes.setdefault(_rounded(self._volume(rank)), rank)
        return max(ranks, key=works.__getitem__), [volumes[most] for most in sorted(volumes, reverse=True)[:TRIED]]

    def _work(self, rank: int) -> tuple[float, ...]:
        works = [load.work(places.get(rank, ())) for places, load in self._loads]
        return tuple(map(sum, zip(*works, strict=True))) if works else (0.0, 0.0, 0.0)

    def _volume(self, rank: int) -> float:
        return sum(load.volume(places.get(rank, ())) for places, load in self._loads)


def _rounded(value: float) -> float:
    """Return a sum such that sums of the same numbers in another order are equal."""
    return float(f"{value:.9e}")
