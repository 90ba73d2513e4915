"""The suite for CPUs: each optimizer in turns with torch.optim.Muon, a step of the one and a step of the other.

In turns by two, since with all of them in turn each would find its memory cold, or given back to the host.

Run: python -m benchmarks.cpu [--threads 2] [--small]
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import contenders as who
from benchmarks import ranks, report, roofline, targets
from benchmarks.cases import (
    GPT2_SMALL,
    LLAMA_8B_LAYER,
    SMALL,
    TINY,
    Case,
    Shape,
    fake_ranks,
    gpt2,
    miniature,
    parameters,
)
from benchmarks.contenders import ADAMW, TORCH_MUON, Contender, essential, named
from benchmarks.factors import polar_candidates
from benchmarks.measure import Sets, Setting, attempt, in_row, side_by_side
from benchmarks.products import dion_products
from benchmarks.results import Results, folder_for_results, reason
from benchmarks.roofline import Roofline
from benchmarks.timing import Budget, Work, in_turns

# Seconds for the whole suite. What has not begun by then is left out with a line; the last to begin takes its own time.
_SECONDS = 540.0

_TORCH = named(who.TORCH, TORCH_MUON, ADAMW)
_EVERYONE = (*_TORCH, *who.FAMILY, *who.PLAIN_LOOPS)
_FEW = (*_TORCH, *named(who.FAMILY, "Dion 1/4", "Dion 1/16", "Muon", "Dion2 1/4"))
_ON_SHARDS = (*named(who.TORCH, ADAMW), *named(who.FAMILY, "Dion 1/4", "Dion 1/16", "Dion 1/64"))


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the suite; return what it has found, which is kept and printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see in seconds that everything runs")
    parser.add_argument("--out", type=Path, help="folder of the results (default: $OUT, or benchmarks/results)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return _Suite(small=given.small, folder=folder_for_results(given.out)).run()


class _Suite:
    """One run.

    Args:
        small: tiny sizes.
        folder: of the results.
    """

    def __init__(self, *, small: bool, folder: Path) -> None:
        self.small, self.budget, self.device = small, Budget(_SECONDS), torch.device("cpu")
        name = "cpu-small" if small else "cpu"
        self.results = Results(name, folder=folder, arguments={"small": small}, device=self.device)
        self.best = self._roofline()
        self.results.roofline = self.best.as_dict()

    def run(self) -> Results:
        """Measure, what is asked for first; print everything at the end."""
        f32, bf16 = torch.float32, torch.bfloat16
        self.pairs(GPT2_SMALL, f32, (*_EVERYONE, *who.peers()), repeats=7, seconds=10.0)
        self.products(GPT2_SMALL, repeats=7, seconds=10.0)
        self.pairs(TINY, f32, _EVERYONE, repeats=100, seconds=1.5)
        self.pairs(SMALL, f32, _FEW, repeats=20, seconds=3.0)
        self.polar_factors((768, 768), (768, 3072))
        self.ranks(Case("GPT-2 small, 4 layers", gpt2(4, 768)), repeats=5)
        self.shard(LLAMA_8B_LAYER.shard(64), f32, repeats=5, seconds=4.0)
        self.pairs(GPT2_SMALL, bf16, _FEW, repeats=5, seconds=8.0)
        verdicts = targets.judged(targets.CPU, self.results)
        report.print_all(report.console(), self.results, verdicts, small=self.small)
        return self.results

    def pairs(
        self, case: Case, dtype: torch.dtype, everyone: Sequence[Contender], *, repeats: int, seconds: float
    ) -> None:
        """Measure each optimizer in turns with torch.optim.Muon, each with weights of its own."""
        if self.small and (case, dtype) != (GPT2_SMALL, torch.float32):
            everyone = essential(everyone)
        case, setting = self._sized(case), self._setting(repeats, seconds)
        (beside,) = named(who.TORCH, TORCH_MUON)
        for contender in everyone:
            rows = self.results.baselines(case.name, dtype)
            others = {name: row.ratios[TORCH_MUON] for name, row in rows.items()}
            work = partial(side_by_side, contender, beside, case, dtype=dtype, setting=setting, others=others)
            attempt(self.results, contender, case, dtype, work, budget=self.budget)

    def products(self, case: Case, *, repeats: int, seconds: float) -> None:
        """Measure Dion's step in turns with the large products in it."""
        (dion,) = named(who.FAMILY, "Dion 1/4")
        if not self.budget.left:
            self.results.note("products", case=case.name, contender=dion.name, note="no time was left")
            return
        setting = self._setting(repeats, seconds)
        params = parameters(self._sized(case), dtype=torch.float32, device=self.device)
        works: dict[str, Work] = {"step": dion.optimizer(params).step, "products": dion_products(params, dion.fraction)}
        for work in works.values():
            work()
        taken = in_turns(works, repeats=setting.repeats, seconds=setting.seconds)
        step, products = (statistics.median(taken[name]) for name in works)
        self.results.note(
            "products",
            case=case.name,
            contender=dion.name,
            step_ms=step * 1e3,
            products_ms=products * 1e3,
            of_products=step / products,
        )

    def polar_factors(self, *shapes: Shape) -> None:
        """Measure polar factors alone, and how far from orthonormal they are."""
        seconds = 0.0 if self.small else 0.5
        for m, n in shapes:
            shape = (m // 16, n // 16) if self.small else (m, n)
            if not self.budget.left:
                self.results.note("polar factors alone", matrix=f"{m}×{n}", note="no time was left")
                continue
            for line in polar_candidates(shape, self.device, ranks=8, seconds=seconds):
                self.results.note("polar factors alone", **line)

    def ranks(self, case: Case, *, repeats: int) -> None:
        """Measure steps on several gloo ranks."""
        case = replace(case, shapes=gpt2(1, 64)) if self.small else case
        if not self.budget.left:
            self.results.note("gloo ranks", case=case.name, note="no time was left")
            return
        worlds = (1, 2) if self.small else (1, 2, 4)
        try:
            for line in ranks.measured(case, worlds=worlds, repeats=2 if self.small else repeats):
                self.results.note("gloo ranks", **line)
        except Exception as error:  # such as ranks that may not talk to each other here; the rest keeps its turn
            self.results.note("gloo ranks", case=case.name, note=reason(error))

    def shard(self, case: Case, dtype: torch.dtype, *, repeats: int, seconds: float) -> None:
        """Measure what one of many ranks computes, with nothing sent."""
        case = self._sized(case)
        with fake_ranks(case.ranks):
            sets, setting = Sets(case, dtype=dtype, device=self.device), self._setting(repeats, seconds)
            for contender in _ON_SHARDS:
                work = partial(in_row, contender, sets, setting, self.results.baselines(case.name, dtype))
                attempt(self.results, contender, case, dtype, work, budget=self.budget)

    def _roofline(self) -> Roofline:
        if self.small:
            return roofline.measured(self.device, side=128, copied=1 << 16, seconds=0.02)
        return roofline.measured(self.device, side=2048, copied=1 << 28, seconds=1.0)

    def _setting(self, repeats: int, seconds: float) -> Setting:
        return Setting(self.best, repeats=3, seconds=0.0) if self.small else Setting(self.best, repeats, seconds)

    def _sized(self, case: Case) -> Case:
        return miniature(case) if self.small else case


if __name__ == "__main__":
    main()
