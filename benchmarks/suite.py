"""What both suites have in common: sizes, settings, the time that is left, and the results."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import report, roofline, targets
from benchmarks.cases import Case, miniature
from benchmarks.contenders import Contender
from benchmarks.measure import Sets, Setting, attempt, in_row
from benchmarks.results import Results
from benchmarks.timing import Budget


def parser(description: str | None, *, small: str) -> argparse.ArgumentParser:
    """Return a parser of the flags of both suites.

    Args:
        description: for --help.
        small: what --small does.
    """
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--small", action="store_true", help=small)
    result.add_argument("--out", type=Path, help="folder of the results (default: $OUT, or benchmarks/results)")
    return result


class Suite:
    """One run of a suite.

    Args:
        name: of the results.
        device: to measure.
        small: tiny sizes.
        folder: of the results.
        seconds: for the whole suite. What has not begun by then is left out with a line; the last to begin takes its
            own time.
        side: of the matrices whose product gives the roofline.
        copied: numbers whose copy gives it.
    """

    def __init__(
        self, name: str, device: torch.device, *, small: bool, folder: Path, seconds: float, side: int, copied: int
    ) -> None:
        self.small, self.device, self.budget = small, device, Budget(seconds)
        name = f"{name}-small" if small else name
        self.results = Results(name, folder=folder, arguments={"small": small}, device=device)
        if small:
            self.best = roofline.measured(device, side=128, copied=1 << 16, seconds=0.02)
        else:
            self.best = roofline.measured(device, side=side, copied=copied, seconds=1.0)
        self.results.roofline = self.best.as_dict()

    def setting(self, repeats: int, seconds: float) -> Setting:
        """Return how often to measure a contender, and for how long at most."""
        return Setting(self.best, repeats=3, seconds=0.0) if self.small else Setting(self.best, repeats, seconds)

    def sized(self, case: Case) -> Case:
        """Return a case in its own size, or tiny."""
        return miniature(case) if self.small else case

    def in_rows(self, case: Case, dtype: torch.dtype, everyone: Sequence[Contender], setting: Setting) -> None:
        """Measure optimizers on a case that has its size, one after the other on the same weights."""
        sets = Sets(case, dtype=dtype, device=self.device)
        for contender in everyone:
            work = partial(in_row, contender, sets, setting, self.results.baselines(case.name, dtype))
            attempt(self.results, contender, case, dtype, work, budget=self.budget)

    def finished(self, asked: tuple[targets.Target, ...]) -> Results:
        """Print everything, and return it."""
        report.print_all(report.console(), self.results, targets.judged(asked, self.results), small=self.small)
        return self.results
