"""Write the tables and pictures of a set from its data: python -m experiments.report NAME [--quick] [--out DIR]."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.entries import Experiment
from experiments.pictures import draw
from experiments.quick import quick
from experiments.results import FOLDER, by_key, read
from experiments.sets import SETS
from experiments.tables import page


def main(arguments: Sequence[str] | None = None) -> None:
    """Write and print the tables of a set."""
    flags = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    flags.add_argument("name", choices=SETS, metavar="NAME", help=f"of the set: {', '.join(SETS)}")
    flags.add_argument("--quick", action="store_true", help="from the data of the quick form")
    flags.add_argument("--out", type=Path, default=FOLDER, help="folder of the data (default: experiments/results)")
    given = flags.parse_args(arguments)
    experiment = quick(SETS[given.name]) if given.quick else SETS[given.name]
    write(experiment, given.out, Console(highlight=False))


def write(experiment: Experiment, folder: Path, console: Console) -> None:
    """Write NAME.md and the pictures beside the data, and print the tables.

    Args:
        experiment: the set.
        folder: of the data.
        console: to print on.
    """
    lines = read(folder / f"{experiment.name}.jsonl")
    if not lines:
        console.print(f"there are no data of {experiment.name} in {folder}")
        return
    found = by_key(lines, lines[-1].corpus)  # runs on another text are not comparable
    text = page(experiment, found)
    (folder / f"{experiment.name}.md").write_text(text, encoding="utf-8")
    pictures = draw(experiment, found, folder)
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"in {folder}: {experiment.name}.md, {', '.join(path.name for path in pictures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
