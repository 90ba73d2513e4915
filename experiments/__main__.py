"""Run a set: python -m experiments NAME [--quick] [--workers N] [--out DIR]."""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

import torch
from rich.console import Console

from experiments import costs, report
from experiments.book import Book, whereabouts
from experiments.entries import Experiment
from experiments.place import Place
from experiments.progress import SetProgress, in_words
from experiments.quick import quick
from experiments.results import DataError
from experiments.runner import Failure, run
from experiments.sets import SETS
from experiments.workers import Workers
from orthon.train.errors import UserError

INTERRUPTED = 130  # as a shell has it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing of a set, and write its tables and pictures. Return the exit code."""
    flags = _parser()
    given = flags.parse_args(arguments)
    experiment = quick(SETS[given.name]) if given.quick else SETS[given.name]
    device = given.device or ("cpu" if given.quick else experiment.device)
    if device == "cuda" and not torch.cuda.is_available():
        flags.error(f"{experiment.name} is for a GPU, and there is none; on a CPU: --quick or --device cpu")
    console = Console(highlight=False)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        flags.error(f"argument --out: {given.out}: {wrong.strerror}")
    try:
        failures = _sitting(experiment, Place(device=device, text=given.text), given.out, given.workers, console)
        report.write(experiment, given.out, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return INTERRUPTED
    except (DataError, UserError) as wrong:
        flags.error(str(wrong).replace("data.paths", "--text"))
    for error, number in Counter(failure.error for failure in failures).items():
        console.print(f"{number} runs FAILED, told above with their settings: {error}", markup=False, soft_wrap=True)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    questions = "\n".join(f"  {name:<10}{experiment.question}" for name, experiment in SETS.items())
    flags = argparse.ArgumentParser(
        prog="python -m experiments",
        description=f"Run a set, or go on with it where it was stopped. There are:\n\n{questions}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("name", choices=SETS, metavar="NAME", help="of the set")
    flags.add_argument("--quick", action="store_true", help="small models and few steps: at most 10 minutes on 2 cores")
    flags.add_argument(
        "--workers", type=_count, default=_cores(), help="processes, one thread each (default: %(default)s)"
    )
    flags.add_argument("--device", choices=("cpu", "cuda"), help="cuda: one GPU for all workers (default: the set's)")
    flags.add_argument("--text", metavar="FOLDER", help="in place of the source of this Python's standard library")
    report.add_out(flags)
    return flags


def _sitting(experiment: Experiment, place: Place, folder: Path, workers: int, console: Console) -> list[Failure]:
    """Print what a set costs, and run what is missing of it."""
    where = whereabouts(place.device)
    book = Book(experiment.name, folder=folder, corpus=place.corpus().fingerprint, where=where)
    console.print(f"{experiment.name}: {experiment.question}", soft_wrap=True)
    with Workers(workers, place) as crew:
        seconds = costs.seconds_per_unit(book.found.values(), where)
        seconds = seconds or costs.measured_seconds_per_unit(crew) or costs.USUAL_SECONDS

        def left(failed: Container[str] = ()) -> float:
            return costs.units_left(experiment, book.found, failed)

        console.print(
            f"{len(book.found)} runs are in {book.path}; the others take about "
            f"{costs.hours(left(), seconds, 2):.1f} hours on two cores, here {in_words(left() * seconds / workers)} "
            f"with {workers} {'worker' if workers == 1 else 'workers'}",
            soft_wrap=True,
        )
        with SetProgress(console, left, seconds / workers) as shown:
            return run(experiment, crew, book, shown)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 but is {word!r}")
    return int(word)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
