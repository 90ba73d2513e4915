"""The command line of the soak run."""

import argparse
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from orthon.testing import Pool
from tests.soak.plan import Segment
from tests.soak.run import LARGEST_DEVIATION, LARGEST_SLOPE, Course, deviations, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="how long the training is")
    parser.add_argument("--seed", type=int, default=0, help="of layouts, checkpoints, crashes and faults")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps should be at least 1, but is {options.steps}")
    console, start = Console(), time.monotonic()
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Pool(forget=["tests"]) as pool, Progress(*columns, *times, console=console) as progress:
        task = progress.add_task("starting", total=options.steps)

        def done(segment: Segment) -> None:
            what = f"{segment.kind}, {segment.world} rank{'s' * (segment.world > 1)}"
            progress.update(task, completed=segment.kept, description=what)
            if not console.is_terminal and segment.kept // 100 > segment.start // 100:
                console.print(f"{time.monotonic() - start:.0f} s: {segment.kept} of {options.steps} steps")

        course = soak(pool, steps=options.steps, seed=options.seed, done=done)
    errors = deviations(course, options.seed)
    console.print(_table(course))
    console.print(
        f"{options.steps} steps in {time.monotonic() - start:.0f} s: {len(course.memory)} segments, {course.saves} "
        f"checkpoints, {course.crashes} crashes that threw {course.executed - options.steps} steps away, "
        f"{course.skipped} steps left out for a bad gradient"
    )
    console.print("Copies were equal bit by bit at the end of every segment, and all losses finite.")
    console.print(f"Losses differ from those of one process without interruptions by at most {max(errors):.1e}.")
    problems = []
    if max(errors) > LARGEST_DEVIATION:
        first = next(step for step, error in enumerate(errors) if error > LARGEST_DEVIATION)
        problems.append(f"losses differ by more than {LARGEST_DEVIATION:.0e} from step {first} on")
    if course.slopes is None:
        console.print("The run is too short to tell whether memory grows.")
    elif max(course.slopes) > LARGEST_SLOPE:
        problems.append(f"memory grows by more than {LARGEST_SLOPE:.0f} kB in 100 steps")
    for problem in problems:
        console.print(f"[red]Failed:[/red] {problem}")
    return 1 if problems else 0


def _table(course: Course) -> Table:
    table = Table(title="Resident memory of the workers")
    for name in ("rank", "after the first segment, MB", "at the end, MB", "kB in 100 steps, after warm-up"):
        table.add_column(name, justify="right")
    first, last = course.memory[0][1], course.memory[-1][1]
    for rank, (before, after) in enumerate(zip(first, last, strict=True)):
        grows = "–" if course.slopes is None else f"{course.slopes[rank]:+.1f}"
        table.add_row(str(rank), f"{before / 1024:.1f}", f"{after / 1024:.1f}", grows)
    return table


if __name__ == "__main__":
    sys.exit(main())
