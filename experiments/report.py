"""Write the page of a set from its data, tables and pictures: python -m experiments.report NAME [--quick] [--out DIR].

The pages of the data that come with the package go to docs/measured/, others beside their data.
"""

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

PAGES = Path(__file__).parents[1] / "docs" / "measured"


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
    """Write NAME.md and the pictures, and print the tables.

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
    pages = PAGES if folder == FOLDER else folder
    pages.mkdir(exist_ok=True)
    pictures = draw(experiment, found, pages)
    text = page(experiment, found, [path.name for path in pictures])
    (pages / f"{experiment.name}.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"in {pages}: {experiment.name}.md, {', '.join(path.name for path in pictures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
