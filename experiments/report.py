"""Write the page of a set from its data, tables and pictures: python -m experiments.report NAME [--quick] [--out DIR].

The pages of the data that come with the package go to docs/measured/, others beside their data.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.entries import Experiment
from experiments.pictures import draw
from experiments.quick import quick
from experiments.results import FOLDER, DataError, by_key, read
from experiments.sets import SETS
from experiments.tables import page

PAGES = Path(__file__).parents[1] / "docs" / "measured"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and print the tables of a set. Return the exit code."""
    flags = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    flags.add_argument("name", choices=SETS, metavar="NAME", help=f"of the set: {', '.join(SETS)}")
    flags.add_argument("--quick", action="store_true", help="from the data of the quick form")
    add_out(flags)
    given = flags.parse_args(arguments)
    experiment = quick(SETS[given.name]) if given.quick else SETS[given.name]
    try:
        return 0 if write(experiment, given.out, Console(highlight=False)) else 1
    except DataError as error:
        flags.error(str(error))


def add_out(flags: argparse.ArgumentParser) -> None:
    """Add the option --out, the folder of the data."""
    flags.add_argument("--out", type=_folder, default=FOLDER, help="folder of the data (default: experiments/results)")


def _folder(word: str) -> Path:
    folder = Path(word).resolve()
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder but is the file {word}")
    return folder


def write(experiment: Experiment, folder: Path, console: Console) -> bool:
    """Write NAME.md and the pictures, and print the tables. Return whether there are data.

    Args:
        experiment: the set.
        folder: of the data.
        console: to print on.
    """
    lines = read(folder / f"{experiment.name}.jsonl")
    if not lines:
        console.print(f"there are no data of {experiment.name} in {folder}", soft_wrap=True)
        return False
    found = by_key(lines, lines[-1].corpus)  # runs on another text are not comparable
    pages = PAGES if folder == FOLDER else folder
    pages.mkdir(exist_ok=True)
    pictures = draw(experiment, found, pages)
    text = page(experiment, found, [path.name for path in pictures])
    (pages / f"{experiment.name}.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"in {pages}: {experiment.name}.md, {', '.join(path.name for path in pictures)}", soft_wrap=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
