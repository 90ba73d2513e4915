"""The figures that are asked for, beside what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cases import GPT2_SMALL, LLAMA_8B_LAYER, LLAMA_405B_LAYER, TINY
from benchmarks.contenders import ADAMW, FAMILY, TORCH_MUON
from benchmarks.layouts import NARROW, WORLDS
from benchmarks.results import Results, Row

Measure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """A figure that is asked for.

    Attributes:
        claim: what of what.
        limit: the figure.
        measure: takes it from results; None if it was not measured.
        at_least: whether it should be at least the limit, instead of at most.
        unit: behind the figures.
    """

    claim: str
    limit: float
    measure: Measure
    at_least: bool = False
    unit: str = "×"


@dataclass(frozen=True)
class Verdict:
    """A target with what was measured.

    Attributes:
        claim: of the target.
        asked: the figure, in words.
        measured: the figure.
        verdict: "met", "missed" or "not measured".
    """

    claim: str
    asked: str
    measured: float | None
    verdict: str


def judged(targets: Sequence[Target], results: Results) -> list[Verdict]:
    """Compare each target with the results, and keep the verdicts there."""
    verdicts = []
    for target in targets:
        value = target.measure(results)
        met = value is not None and (value >= target.limit if target.at_least else value <= target.limit)
        asked = f"{'≥' if target.at_least else '≤'} {target.limit:g} {target.unit}"
        verdict = "not measured" if value is None else "met" if met else "missed"
        verdicts.append(Verdict(target.claim, asked, value, verdict))
    results.targets = [asdict(verdict) for verdict in verdicts]
    results.save()
    return verdicts


def _ratio(case: str, contender: str, beside: str, dtype: str) -> Measure:
    def measure(results: Results) -> float | None:
        row = results.find(case, contender, dtype)
        return None if row is None else row.ratios.get(beside)

    return measure


def _worst_of_family(case: str, dtype: str, value: Callable[[Row], float]) -> Measure:
    """Return the largest value over Orthon's rules, if all of them were measured."""

    def measure(results: Results) -> float | None:
        rows = [results.find(case, contender.name, dtype) for contender in FAMILY]
        return None if None in rows else max(value(row) for row in rows if row is not None)

    return measure


def _of_roofline_in_percent(case: str, contender: str, dtype: str) -> Measure:
    def measure(results: Results) -> float | None:
        row = results.find(case, contender, dtype)
        return None if row is None or row.of_roofline is None else 100 * row.of_roofline

    return measure


def _times_roofline(case: str, contender: str, dtype: str) -> Measure:
    def measure(results: Results) -> float | None:
        row = results.find(case, contender, dtype)
        return None if row is None or not row.of_roofline else 1 / row.of_roofline

    return measure


def _noted(table: str, key: str, **which: Any) -> Measure:
    """Return a number of the line of another table in which some columns have these values."""

    def measure(results: Results) -> float | None:
        for line in results.tables.get(table, ()):
            if which.items() <= line.items() and line.get(key) is not None:
                return float(line[key])
        return None

    return measure


def _worst_noted(table: str, key: str, contenders: Sequence[str]) -> Measure:
    """Return the largest number of some contenders' lines of another table, if all of them are there."""

    def measure(results: Results) -> float | None:
        each = [_noted(table, key, contender=name)(results) for name in contenders]
        return None if None in each else max(value for value in each if value is not None)

    return measure


def _microseconds_per_matrix(row: Row) -> float:
    return (row.seconds or 0.0) / row.matrices * 1e6


def _first_over_later(row: Row) -> float:
    return (row.first_seconds or 0.0) / (row.seconds or 1.0)


_GPT2, _TINY, _LLAMA = GPT2_SMALL.name, TINY.name, LLAMA_405B_LAYER.name

_DEFAULTS = ("Dion 1/4", "Muon", "NorMuon", "Dion2 1/4", "Dion3 1/4")

CPU: tuple[Target, ...] = (
    Target("GPT-2 small, Dion 1/4 of the paper, of its large products alone", 1.25, _noted("products", "of_products")),
    Target("GPT-2 small, Dion 1/4, of the step without a tail", 1.10, _noted("tail", "of_without")),
    Target("GPT-2 small, Dion 1/16, of torch.optim.Muon", 0.12, _ratio(_GPT2, "Dion 1/16", TORCH_MUON, "float32")),
    Target("GPT-2 small, Muon, of torch.optim.Muon", 0.60, _ratio(_GPT2, "Muon", TORCH_MUON, "float32")),
    Target("GPT-2 small, Dion2 1/4, of torch.optim.Muon", 0.12, _ratio(_GPT2, "Dion2 1/4", TORCH_MUON, "float32")),
    Target(
        "72 of 32×32, the slowest rule at its defaults, per matrix, steps in a row",
        25.0,
        _worst_noted("steps in a row", "us_per_matrix", _DEFAULTS),
        unit="µs",
    ),
    Target(
        "72 of 32×32, the slowest rule and rank, per matrix, in turns with torch.optim.Muon",
        25.0,
        _worst_of_family(_TINY, "float32", _microseconds_per_matrix),
        unit="µs",
    ),
    Target(
        "GPT-2 small, the slowest first step, of a later one",
        1.5,
        _worst_of_family(_GPT2, "float32", _first_over_later),
    ),
    *(
        Target(
            f"{NARROW.name}, Dion 1/4 on {name}, CPU seconds of all ranks, of one process",
            1.3,
            _noted("layouts", "cpu_of_one_process", case=NARROW.name, layout=name),
        )
        for names in WORLDS.values()
        for name in names
    ),
    Target(
        f"{NARROW.name}, Dion 1/4 on FSDP 2, of one process, at one thread each",
        0.65,
        _noted("layouts", "wall_of_one_process", case=NARROW.name, layout="FSDP 2"),
    ),
    Target("72 of 32×32, Dion 1/4 on FSDP 4", 15.0, _noted("layouts", "ms", case=_TINY, layout="FSDP 4"), unit="ms"),
    Target(
        "LLaMA-3 8B layer, one of 64 ranks, Dion 1/4, of its roofline",
        2.0,
        _times_roofline(LLAMA_8B_LAYER.shard(64).name, "Dion 1/4", "float32"),
    ),
)

GPU: tuple[Target, ...] = (
    Target(
        "LLaMA-3 405B layer, Dion 1/4, of the roofline",
        45.0,
        _of_roofline_in_percent(_LLAMA, "Dion 1/4", "bfloat16"),
        at_least=True,
        unit="%",
    ),
    Target(
        "LLaMA-3 405B layer, Dion 1/4, of torch.optim.Muon", 0.20, _ratio(_LLAMA, "Dion 1/4", TORCH_MUON, "bfloat16")
    ),
    Target(
        "LLaMA-3 405B layer, Dion 1/16, of torch.optim.Muon", 0.06, _ratio(_LLAMA, "Dion 1/16", TORCH_MUON, "bfloat16")
    ),
    Target("LLaMA-3 405B layer, Dion 1/64, of fused AdamW", 1.5, _ratio(_LLAMA, "Dion 1/64", ADAMW, "bfloat16")),
    Target("LLaMA-3 405B layer, Muon, of torch.optim.Muon", 0.55, _ratio(_LLAMA, "Muon", TORCH_MUON, "bfloat16")),
    Target(
        "GPT-2 small, Dion 1/4, of fused AdamW, both as CUDA graphs",
        2.0,
        _noted("CUDA graphs", "of_adamw", contender="Dion 1/4"),
    ),
)
