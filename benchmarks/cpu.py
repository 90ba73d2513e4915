"""The suite for CPUs: each optimizer in turns with torch.optim.Muon, a step of the one and a step of the other.

In turns by two, since with all of them in turn each would find its memory cold, or given back to the host.

Run: python -m benchmarks.cpu [--threads 2] [--small]
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import contenders as who
from benchmarks import layouts, ranks, targets
from benchmarks.cases import (
    GPT2_SMALL,
    LLAMA_8B_LAYER,
    SMALL,
    TINY,
    Case,
    Shape,
    fake_ranks,
    gpt2,
    parameters,
)
from benchmarks.contenders import ADAMW, TORCH_MUON, Contender, essential, named
from benchmarks.factors import polar_candidates
from benchmarks.measure import attempt, side_by_side
from benchmarks.products import dion_products
from benchmarks.results import Results, folder_for_results, reason
from benchmarks.suite import Suite, parser
from benchmarks.timing import Work, in_a_row, in_turns
from orthon.testing import Pool

_SECONDS = 540.0

# For what ranks measure in one call, in seconds.
_TIMEOUT = 300.0

_TORCH = named(who.TORCH, TORCH_MUON, ADAMW)
_EVERYONE = (*_TORCH, *who.FAMILY, *who.PLAIN_LOOPS)
_FEW = (*_TORCH, *named(who.FAMILY, "Dion 1/4", "Dion 1/16", "Muon", "Dion2 1/4"))
_ON_SHARDS = (*named(who.TORCH, ADAMW), *named(who.FAMILY, "Dion 1/4", "Dion 1/16", "Dion 1/64"))


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the suite; return what it has found, which is kept and printed."""
    flags = parser(__doc__, small="tiny sizes, to see in seconds that everything runs")
    flags.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    given = flags.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with Pool() as pool:
        return _Suite(pool, small=given.small, folder=folder_for_results(given.out)).run()


class _Suite(Suite):
    def __init__(self, pool: Pool, *, small: bool, folder: Path) -> None:
        self._pool = pool
        device = torch.device("cpu")
        super().__init__("cpu", device, small=small, folder=folder, seconds=_SECONDS, side=2048, copied=1 << 28)

    def run(self) -> Results:
        """Measure, what is asked for first; print everything at the end."""
        f32, bf16 = torch.float32, torch.bfloat16
        self.pairs(
            GPT2_SMALL, f32, (*_EVERYONE, *who.OF_THE_PAPER, *who.ROUNDED, *who.peers()), repeats=7, seconds=10.0
        )
        self.products(GPT2_SMALL, repeats=7, seconds=10.0)
        self.tail(GPT2_SMALL, repeats=7, seconds=10.0)
        self.pairs(TINY, f32, _EVERYONE, repeats=100, seconds=1.5)
        self.one_after_the_other(TINY, f32, who.FAMILY, repeats=200, seconds=1.0)
        self.pairs(SMALL, f32, _FEW, repeats=20, seconds=3.0)
        self.polar_factors((768, 768), (768, 3072))
        self.ranks(Case("GPT-2 small, 4 layers", gpt2(4, 768)), repeats=5)
        self.layouts(layouts.NARROW, 2, repeats=5)
        self.layouts(layouts.NARROW, 4, repeats=5)
        self.layouts(TINY, 4, repeats=20)
        self.shard(LLAMA_8B_LAYER.shard(64), f32, repeats=5, seconds=4.0)
        self.pairs(GPT2_SMALL, bf16, _FEW, repeats=5, seconds=8.0)
        return self.finished(targets.CPU)

    def pairs(
        self, case: Case, dtype: torch.dtype, everyone: Sequence[Contender], *, repeats: int, seconds: float
    ) -> None:
        """Measure each optimizer in turns with torch.optim.Muon, each with weights of its own."""
        if self.small and (case, dtype) != (GPT2_SMALL, torch.float32):
            everyone = essential(everyone)
        case, setting = self.sized(case), self.setting(repeats, seconds)
        (beside,) = named(who.TORCH, TORCH_MUON)
        for contender in everyone:
            rows = self.results.baselines(case.name, dtype)
            others = {name: row.ratios[TORCH_MUON] for name, row in rows.items()}
            work = partial(side_by_side, contender, beside, case, dtype=dtype, setting=setting, others=others)
            attempt(self.results, contender, case, dtype, work, budget=self.budget)

    def products(self, case: Case, *, repeats: int, seconds: float) -> None:
        """Measure the step of the paper's Dion in turns with the large products in it."""
        (dion,) = who.OF_THE_PAPER
        if not self.budget.left:
            self.results.note("products", case=case.name, contender=dion.name, note="no time was left")
            return
        params = parameters(self.sized(case), dtype=torch.float32, device=self.device)
        products = dion_products(params, dion.fraction)
        self._against("products", dion.optimizer(params).step, products, case, dion, repeats=repeats, seconds=seconds)

    def tail(self, case: Case, *, repeats: int, seconds: float) -> None:
        """Measure Dion's step in turns with the step without a tail."""
        (dion,) = named(who.FAMILY, "Dion 1/4")
        if not self.budget.left:
            self.results.note("tail", case=case.name, contender=dion.name, note="no time was left")
            return
        params = [parameters(self.sized(case), dtype=torch.float32, device=self.device) for _ in range(2)]
        step, without = dion.optimizer(params[0]).step, dion.optimizer(params[1], tail=0.0).step
        self._against("without", step, without, case, dion, repeats=repeats, seconds=seconds, table="tail")

    def _against(
        self,
        name: str,
        step: Work,
        other: Work,
        case: Case,
        contender: Contender,
        *,
        repeats: int,
        seconds: float,
        table: str | None = None,
    ) -> None:
        """Measure a contender's step in turns with other work of this name, and note both and their ratio."""
        setting, works = self.setting(repeats, seconds), {"step": step, name: other}
        for work in works.values():
            work()
        taken = in_turns(works, repeats=setting.repeats, seconds=setting.seconds)
        mine, its = (statistics.median(taken[each]) for each in works)
        found = {"step_ms": mine * 1e3, f"{name}_ms": its * 1e3, f"of_{name}": mine / its}
        self.results.note(table or name, case=case.name, contender=contender.name, **found)

    def one_after_the_other(
        self, case: Case, dtype: torch.dtype, everyone: Sequence[Contender], *, repeats: int, seconds: float
    ) -> None:
        """Measure steps that follow each other, where the time in between decides whether caches still hold them."""
        setting = self.setting(repeats, seconds)
        for contender in everyone:
            step = contender.optimizer(parameters(self.sized(case), dtype=dtype, device=self.device)).step
            step()
            taken = in_a_row([step], self.device, repeats=setting.repeats, seconds=setting.seconds)
            each = statistics.median(taken) / len(case.shapes) * 1e6
            self.results.note("steps in a row", case=case.name, contender=contender.name, us_per_matrix=each)

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
        case, repeats = (replace(case, shapes=gpt2(1, 64)), 2) if self.small else (case, repeats)
        if not self.budget.left:
            self.results.note("gloo ranks", case=case.name, note="no time was left")
            return
        worlds = (1, 2) if self.small else (1, 2, 4)
        try:
            for line in ranks.measured(self._pool, case, worlds=worlds, repeats=repeats, timeout=_TIMEOUT):
                self.results.note("gloo ranks", **line)
        except Exception as error:  # such as ranks that may not talk to each other here; the rest keeps its turn
            self.results.note("gloo ranks", case=case.name, note=reason(error))

    def layouts(self, case: Case, world: int, *, repeats: int) -> None:
        """Measure what all ranks together take on the layouts that people use."""
        names = tuple(layouts.WORLDS[world])
        if case is TINY:
            names = names[:1]
        case, repeats = self.sized(case), 2 if self.small else repeats
        if not self.budget.left:
            self.results.note("layouts", case=case.name, ranks=world, note="no time was left")
            return
        try:
            for line in layouts.measured(self._pool, case, world, names=names, repeats=repeats, timeout=_TIMEOUT):
                self.results.note("layouts", **line)
        except Exception as error:  # as above
            self.results.note("layouts", case=case.name, ranks=world, note=reason(error))

    def shard(self, case: Case, dtype: torch.dtype, *, repeats: int, seconds: float) -> None:
        """Measure what one of many ranks computes, with nothing sent."""
        case = self.sized(case)
        with fake_ranks(case.ranks):
            self.in_rows(case, dtype, _ON_SHARDS, self.setting(repeats, seconds))


if __name__ == "__main__":
    main()
