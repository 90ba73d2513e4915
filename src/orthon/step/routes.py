"""How ranks work on the matrices of a step: by owners, or together on their shards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from orthon.algorithms.work import Effort
from orthon.machines import Machine
from orthon.sharding import Layout
from orthon.step.batches import Piece, ranks_of

# In one process a batch holds at most this many bytes of gradients, or a single parameter, and so few that its update
# takes at most twice as many bytes for what it makes and does not keep. On several ranks, a wave that works on shards
# may be larger, see `cap`. A wave of owners gives each rank this many bytes of matrices, or one matrix.
BATCH_BYTES = 64 << 20

# So many waves on shards overlap well enough. More of them would only make more collectives.
_ENOUGH_WAVES = 8

# Collectives that a wave takes, and operations on shards.
_COLLECTIVES = {"owners": 2, "shards": 8}
_OPERATIONS = 150

# Some matrices by owners and others on shards are more waves and collectives. They have to save a part of the time that
# all of them take one way.
_WORTH_MIXING = 0.9

# How often a number that is sent is written to memory or read: where it is packed, received, put together and used.
_PASSES = 6


@dataclass
class Alike:
    """What may be one batch: parameters or matrices of one param group that lie alike.

    Attributes:
        pieces: all of them.
        route: how they are worked on.
        cap: how many bytes of gradients a batch may hold, as `taken` counts them.
    """

    pieces: list[Piece]
    route: str = "alone"
    cap: float = BATCH_BYTES

    @property
    def layout(self) -> Layout:
        """How each lies."""
        return self.pieces[0].layout

    @property
    def ranks(self) -> tuple[int, ...]:
        """Which ranks communicate about them."""
        return ranks_of(self.pieces[0])

    @property
    def count(self) -> int:
        """How many matrices they are."""
        return sum(piece.count for piece in self.pieces)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.pieces[0].member.param.dtype

    def effort(self, route: str) -> Effort:
        """Return what one of the matrices takes."""
        member = self.pieces[0].member
        return member.rule.work.effort(route, self.layout, member.group)

    def work(self, route: str, machine: Machine) -> float:
        """Return how many seconds the owner of one matrix works on it, or each rank on its shard."""
        effort, dtype = self.effort(route), self.computed_in
        # Of the matrices of a batch on shards, each rank factors some.
        divided = max(1, min(len(self.ranks), self.most * self.pieces[0].count, self.count)) if route == "shards" else 1
        return machine.seconds(effort.products, dtype) + machine.factor_seconds(effort.factoring / divided, dtype)

    @property
    def computed_in(self) -> torch.dtype:
        """The dtype of large products, and of what is sent for polar factors."""
        return self._polar_dtype or self.pieces[0].member.group.get("product_dtype") or self._stored_in

    @property
    def _stored_in(self) -> torch.dtype:
        """The dtype of the state."""
        return self.pieces[0].member.group.get("state_dtype") or self.dtype

    @property
    def _polar_dtype(self) -> torch.dtype | None:
        """The dtype of polar factors, for a rule that has some."""
        member = self.pieces[0].member
        return member.rule.work.polar_dtype(self._stored_in, self.layout, member.group)

    def sending(self, route: str, machine: Machine) -> float:
        """Return how many seconds each rank sends for all of the matrices, and starts operations on its shards."""
        number = (self._polar_dtype or self._stored_in).itemsize
        numbers = self.effort(route).numbers * self.count
        passes = machine.traffic_seconds(_PASSES * numbers * number)
        batches = 1 if route == "owners" else -(-len(self.pieces) // self.most)
        seconds = machine.sending_seconds(numbers * number, self.ranks, messages=batches * _COLLECTIVES[route])
        return seconds + passes + (batches * _OPERATIONS * machine.launch if route == "shards" else 0.0)

    @property
    def most(self) -> int:
        """How many of the pieces may be a batch on shards, or in one process."""
        return max(1, int(self.cap / max(1.0, taken(self.pieces[0]))))


def choose_routes(groups: Sequence[Alike], machine: Machine) -> None:
    """Give each group of matrices the route with which the whole step takes the shortest time.

    Owners work at the same time. So they take as long as a rank works on its part of all matrices, but at least as
    long as on the largest one. Work on shards takes its time for each matrix.

    Args:
        groups: of matrices, about all of which the same ranks communicate.
        machine: on which the ranks run.
    """
    ranks = len(groups[0].ranks)
    free: list[Alike] = []
    busy, largest = 0.0, 0.0  # seconds of work that owners have, and on one matrix
    for group in groups:
        member = group.pieces[0].member
        routes = member.rule.work.routes(group.layout, member.group)
        if group.pieces[0].compressed and "shards" in routes:
            routes = ("shards",)
        if ranks == 1 or not routes:
            group.route = "alone"
        elif len(routes) == 1:
            group.route = routes[0]
            if routes == ("owners",):
                work = group.work("owners", machine)
                busy, largest = busy + group.count * work, max(largest, work)
        else:
            free.append(group)
    if not free:
        return
    owned = {id(group): (group.work("owners", machine), group.sending("owners", machine)) for group in free}
    on_shards = {
        id(group): group.count * group.work("shards", machine) + group.sending("shards", machine) for group in free
    }

    def seconds(count: int) -> float:
        """Return the time of a step in which the first so many groups go to owners."""
        works = [(group.count * owned[id(group)][0], owned[id(group)][0]) for group in free[:count]]
        total = busy + sum(work for work, _ in works)
        longest = max([largest, *(one for _, one in works)])
        sending = sum(owned[id(group)][1] for group in free[:count])
        return max(total / ranks, longest) + sending + sum(on_shards[id(group)] for group in free[count:])

    def gain(group: Alike) -> float:
        work, sending = owned[id(group)]
        return on_shards[id(group)] - group.count * work / ranks - sending

    free.sort(key=gain, reverse=True)
    best, one_way = min(range(len(free), -1, -1), key=seconds), min((len(free), 0), key=seconds)
    if seconds(best) > _WORTH_MIXING * seconds(one_way):
        best = one_way
    for index, group in enumerate(free):
        group.route = "owners" if index < best else "shards"


def cap(groups: Sequence[Alike], wave_memory: float) -> float:
    """Return how many bytes of gradients a batch or a wave on shards may hold.

    Args:
        groups: about all of which the same ranks communicate.
        wave_memory: bytes that a wave may take, which is twice as much as it holds.
    """
    if len(groups[0].ranks) == 1:
        return BATCH_BYTES
    total = sum(taken(piece) for group in groups for piece in group.pieces)
    return max(BATCH_BYTES, min(wave_memory / 2, total / _ENOUGH_WAVES))


def taken(piece: Piece) -> float:
    """Return half of the bytes that a piece takes, or those of its gradient where that is more."""
    work, dtype = piece.member.rule.work, piece.member.param.dtype
    own = math.prod(piece.layout.largest_shard) * dtype.itemsize
    if piece.stack is None:
        return float(own)
    return piece.count * max(own, work.temporaries(piece.layout, piece.member.group, dtype) / 2)
