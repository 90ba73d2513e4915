"""What happens in a soak run, drawn beforehand: segments, checkpoints, crashes, bad gradients, late ranks."""

import random
from dataclasses import dataclass

# How a model is distributed, and on how many ranks.
PLACES = [
    ("one process", 1),
    ("ddp", 2),
    ("ddp", 4),
    ("ddp compressed", 2),
    ("ddp compressed", 4),
    ("fsdp", 2),
    ("fsdp", 4),
    ("hsdp", 4),
    ("hsdp compressed", 4),
    ("tp", 2),
    ("tp", 4),
    ("fsdp x tp same dim", 4),
    ("fsdp x tp other dim", 4),
]
LONGEST = 30
_SAVES, _CRASHES, _BAD, _LATE = 0.04, 0.25, 0.08, 0.005  # of the steps, segments, steps, steps


@dataclass(frozen=True)
class Segment:
    """Steps between a start and an end, or a crash.

    Attributes:
        kind: how the model is distributed.
        world: on how many ranks.
        start: the step from which it goes on, of which there is a checkpoint unless it is 0.
        stop: the step before which it ends.
        saves: before which steps it saves, ascending, `stop` included unless it crashes.
        kept: the newest checkpoint after it, where the next segment starts.
    """

    kind: str
    world: int
    start: int
    stop: int
    saves: tuple[int, ...]
    kept: int

    @property
    def crashes(self) -> bool:
        """Whether the steps after the last checkpoint are thrown away."""
        return self.kept < self.stop


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a step.

    Attributes:
        bad: the number that one rank finds in its gradient; None if that is right.
        seconds: by which one rank is late.
        rank: the one, modulo the number of ranks.
        place: of the number among the rank's parameters, in [0, 1).
    """

    bad: float | None
    seconds: float
    rank: int
    place: float


def plan(steps: int, seed: int, *, longest: int = LONGEST) -> list[Segment]:
    """Return segments of at most `longest` steps that make these steps, on all places in turns of random order."""
    generator = random.Random(seed)
    segments: list[Segment] = []
    turn: list[tuple[str, int]] = []
    start = 0
    while start < steps:
        turn = turn or generator.sample(PLACES, len(PLACES))
        kind, world = turn.pop()
        stop = min(start + generator.randint(1, longest), steps)
        saves = [step for step in range(start + 1, stop) if generator.random() < _SAVES]
        if crashes := generator.random() < _CRASHES and stop < steps:
            kept = max(saves, default=start)
        else:
            saves, kept = [*saves, stop], stop
        assert crashes == (kept < stop)
        segments.append(Segment(kind, world, start, stop, tuple(saves), kept))
        start = kept
    return segments


def fault(step: int, seed: int) -> Fault:
    """Return what goes wrong in a step, the same each time that it is made."""
    generator = random.Random(1_000_003 * seed + step)
    bad = generator.choice([float("nan"), float("inf"), -float("inf")]) if generator.random() < _BAD else None
    seconds = 0.5 if generator.random() < _LATE else 0.0
    return Fault(bad, seconds, generator.randrange(4), generator.random())
