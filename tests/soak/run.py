"""A soak run, segment by segment, and what it must come out as."""

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orthon.testing import Pool
from tests.soak.memory import slope
from tests.soak.plan import LONGEST, PLACES, Segment, plan
from tests.soak.segment import run_segment, uninterrupted

WORLD = 4
# Layouts that are met for the first time cost memory once. After two turns through all of them nothing should.
_WARM_UP = 2 * len(PLACES)
# kB in 100 steps. Growth slows down: rank 0, which also plans the checkpoints, was seen at 120 in the steps from 400 to
# 900 and at 30 in those from 1,500 to 2,400. With torch's AdamW, and without faults, it was at 60 from 350 to 1,450.
LARGEST_SLOPE = 200.0
# Of losses below 1. Rounding of 1e-11 in the first weights grows to 1e-8 in 2,000 steps of one process.
LARGEST_DEVIATION = 1e-6


@dataclass
class Course:
    """How a run went.

    Attributes:
        losses: of each step, when it was last made.
        executed: how many steps were made, those that crashes threw away included.
        skipped: how many of them were left out.
        saves: how many checkpoints were made.
        crashes: how many segments ended so.
        memory: after each segment how many steps had been made, and the kB of each rank.
    """

    losses: list[float] = field(default_factory=list)
    executed: int = 0
    skipped: int = 0
    saves: int = 0
    crashes: int = 0
    memory: list[tuple[int, list[float]]] = field(default_factory=list)

    @property
    def slopes(self) -> list[float] | None:
        """By how many kB each rank grew in 100 steps after the warm-up; None for a short run."""
        after = self.memory[_WARM_UP:]
        if len(after) < _WARM_UP:
            return None
        steps = [float(executed) for executed, _ in after]
        return [100 * slope(steps, [kb[rank] for _, kb in after]) for rank in range(WORLD)]


def soak(
    pool: Pool, *, steps: int, seed: int, longest: int = LONGEST, done: Callable[[Segment], None] = lambda _: None
) -> Course:
    """Return how the run went.

    Args:
        pool: of workers.
        steps: how many there are to be in the end.
        seed: of all that is drawn.
        longest: steps of a segment.
        done: is called after each segment.

    Raises:
        AssertionError: for copies that differ, losses that are not finite, and steps skipped for no reason.
    """
    course = Course()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for segment in plan(steps, seed, longest=longest):
            reports = pool.run(WORLD, run_segment, segment, folder, seed, timeout=120)
            taking_part = reports[: segment.world]
            where = f"steps {segment.start} to {segment.stop} by {segment.kind} on {segment.world} ranks"
            assert len({report.digest for report in taking_part}) == 1, f"{where}: copies differ"
            assert len({report.skipped for report in taking_part}) == 1, f"{where}: ranks left out different steps"
            # Ranks that read the same data are as many for each part of the batch.
            means = [sum(each) / len(each) for each in zip(*(report.losses for report in taking_part), strict=True)]
            assert all(map(math.isfinite, means)), f"{where}: losses {means}"
            course.losses[segment.start :] = means
            course.executed += len(means)
            course.skipped += taking_part[0].skipped
            course.saves += len(segment.saves)
            course.crashes += segment.crashes
            course.memory.append((course.executed, [report.resident_kb for report in reports]))
            for old in Path(folder).iterdir():
                if int(old.name) != segment.kept:
                    shutil.rmtree(old)
            done(segment)
    return course


def deviations(course: Course, seed: int) -> list[float]:
    """Return by how much the loss of each step differs from that of one process without interruptions."""
    right = uninterrupted(len(course.losses), seed)
    return [abs(a - b) for a, b in zip(course.losses, right, strict=True)]
