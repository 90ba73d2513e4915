"""The suite for one GPU; on the CPU with --small, to see that everything runs.

Run: python -m benchmarks.gpu [--small] [--out FOLDER]
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import contenders as who
from benchmarks import factors, targets
from benchmarks.cases import GPT2_SMALL, LLAMA_8B_LAYER, LLAMA_405B_LAYER, SMALL, TINY, Case, fake_ranks
from benchmarks.contenders import ADAMW, TORCH_MUON, Contender, essential, named
from benchmarks.graphs import captured
from benchmarks.results import Results, folder_for_results, reason
from benchmarks.suite import Suite, parser

_SECONDS = 430.0

_BASELINES = named(who.TORCH, ADAMW, TORCH_MUON)
_PLAIN = named(who.PLAIN_LOOPS, "plain loop Dion 1/4", "plain loop Muon")
_EVERYONE = (*_BASELINES, *who.FAMILY, *who.PLAIN_LOOPS)
_FEW = (*_BASELINES, *named(who.FAMILY, "Dion 1/4", "Dion 1/16", "Muon", "Dion2 1/4"))


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the suite; return what it has found, which is kept and printed."""
    flags = parser(__doc__, small="tiny sizes, on the CPU, to see that everything runs")
    given = flags.parse_args(arguments)
    if not given.small and not torch.cuda.is_available():
        flags.error("there is no CUDA device; --small runs tiny sizes on the CPU")
    torch.manual_seed(0)
    return _Suite(small=given.small, folder=folder_for_results(given.out)).run()


class _Suite(Suite):
    def __init__(self, *, small: bool, folder: Path) -> None:
        device = torch.device("cpu" if small else "cuda")
        super().__init__("gpu", device, small=small, folder=folder, seconds=_SECONDS, side=8192, copied=1 << 32)

    def run(self) -> Results:
        """Measure, what is asked for first; print everything at the end."""
        f32, bf16 = torch.float32, torch.bfloat16
        peers = tuple(who.peers())
        self.rows(LLAMA_405B_LAYER, bf16, (*_BASELINES, *who.FAMILY, *_PLAIN), repeats=20, seconds=4.0)
        self.rows(GPT2_SMALL, bf16, (*_EVERYONE, *peers), repeats=100, seconds=1.0)
        self.graphs(GPT2_SMALL, bf16, (*_BASELINES, *who.FAMILY))
        self.factors()
        self.shards(LLAMA_405B_LAYER, bf16)
        self.rows(TINY, bf16, _EVERYONE, repeats=600, seconds=1.0)
        self.rows(SMALL, bf16, _EVERYONE, repeats=100, seconds=1.0)
        self.rows(LLAMA_8B_LAYER, bf16, (*_BASELINES, *who.FAMILY, *_PLAIN), repeats=50, seconds=1.0)
        self.rows(GPT2_SMALL, f32, (*_FEW, *who.ROUNDED), repeats=50, seconds=1.0)
        self.rows(LLAMA_8B_LAYER, f32, (*_FEW, *who.ROUNDED), repeats=30, seconds=1.0)
        self.rows(TINY, f32, _FEW, repeats=600, seconds=1.0)
        self.rows(SMALL, f32, _FEW, repeats=100, seconds=1.0)
        return self.finished(targets.GPU)

    def rows(
        self, case: Case, dtype: torch.dtype, everyone: Sequence[Contender], *, repeats: int, seconds: float
    ) -> None:
        """Measure optimizers on a case, one after the other on the same weights."""
        if self.small and (case, dtype) != (GPT2_SMALL, torch.bfloat16):
            everyone = essential(everyone)
        self.in_rows(self.sized(case), dtype, everyone, self.setting(repeats, seconds))

    def shards(self, case: Case, dtype: torch.dtype) -> None:
        """Measure what one of 8, 64 and 512 ranks computes, with nothing sent."""
        everyone = (*named(who.TORCH, ADAMW), *(essential(who.FAMILY) if self.small else who.FAMILY))
        for ranks in (8, 64, 512):
            share = self.sized(case).shard(ranks)
            with fake_ranks(ranks):
                self.in_rows(share, dtype, everyone, self.setting(20, 1.0))

    def graphs(self, case: Case, dtype: torch.dtype, everyone: Sequence[Contender]) -> None:
        """Measure steps as CUDA graphs, and compare each with fused AdamW as one."""
        adamw: float | None = None
        for contender in everyone:
            line = self._attempt(partial(self._captured, contender, self.sized(case), dtype), contender=contender.name)
            adamw = line.get("graph_ms") if contender.name == ADAMW else adamw
            if adamw and "graph_ms" in line:
                line["of_adamw"] = line["graph_ms"] / adamw
            self.results.note("CUDA graphs", **line)

    def factors(self) -> None:
        """Measure polar factors and orthonormalizations alone."""
        seconds = 0.01 if self.small else 0.7
        square, tall = (64, 2) if self.small else (4096, 4)
        for shape in ((square, square), (square, tall * square), (tall * square, tall * square)):
            polar = partial(factors.polar_candidates, shape, self.device, ranks=8, seconds=seconds)
            self._lines("polar factors alone", polar, shape)
        for shape in ((tall * square, square), (tall * square, square // 4), (square, square // 4)):
            qr = partial(factors.orthonormalizations, shape, self.device, seconds=seconds)
            self._lines("orthonormalization alone", qr, shape)

    def _captured(self, contender: Contender, case: Case, dtype: torch.dtype) -> dict[str, Any]:
        return captured(contender, case, dtype=dtype, device=self.device, seconds=0.5)

    def _lines(self, table: str, work: Callable[[], Any], shape: tuple[int, int]) -> None:
        """Keep the lines of another table, or one that says why there are none."""

        def keep() -> dict[str, Any]:
            for line in work():
                self.results.note(table, **line)
            return {}

        if failed := self._attempt(keep, matrix=f"{shape[0]}×{shape[1]}"):
            self.results.note(table, **failed)

    def _attempt(self, work: Callable[[], dict[str, Any]], **which: Any) -> dict[str, Any]:
        """Return a line, or one that says why there is none."""
        if not self.budget.left:
            return {**which, "note": "no time was left"}
        try:
            return work()
        except Exception as error:  # the others keep their turns
            return {**which, "note": reason(error)}


if __name__ == "__main__":
    main()
