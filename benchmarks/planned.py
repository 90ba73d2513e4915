"""How long steps take that were planned for this machine as `measure` finds it, beside how long they really take.

Run: python -m benchmarks.planned [--threads 1] [--docs docs/plan.md]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.cases import GPT2_SMALL, LLAMA_8B_LAYER, Case, fake_ranks, gpt2, parameters
from benchmarks.report import console, print_lines
from benchmarks.results import Results, folder_for_results
from orthon import Dion, Dion2, MixedOptimizer, Muon, plan
from orthon.machines import Link, Machine, measure
from orthon.testing import Pool, layouts

FOUR_LAYERS = Case("GPT-2 small, 4 layers", gpt2(4, 768))
LAYOUTS = {"FSDP2": "fsdp 0", "DDP": "ddp"}

# Seconds that one case may take on several ranks.
_TIMEOUT = 900.0

# Between the lines of a page that begin with these stands the table.
BEGIN, END = "<!-- planned: begin -->", "<!-- planned: end -->"

Maker = Callable[[nn.Module], MixedOptimizer]


def makers(**common: Any) -> dict[str, Maker]:
    """Return the optimizers, with options that all of them have."""

    def of(kind: Callable[..., MixedOptimizer], **options: Any) -> Maker:
        return lambda model: kind(list(model.named_parameters()), **options, **common)

    def adamw(model: nn.Module) -> MixedOptimizer:
        return MixedOptimizer(list(model.named_parameters()), algorithm="adamw", options={}, **common)

    return {
        "Dion 1/4": of(Dion),
        "Dion 1/16": of(Dion, rank_fraction=1 / 16),
        "Muon": of(Muon),
        "Dion2 1/4": of(Dion2),
        "AdamW": adamw,
    }


def compared(
    model: nn.Module, machine: Machine, *, repeats: int, told: Callable[[], object], **common: Any
) -> list[dict[str, Any]]:
    """Return for each optimizer what was planned, and the median of what steps took, those of all in turns.

    Args:
        model: with gradients.
        machine: this one, as measured.
        repeats: of each step.
        told: is called after each round of steps.
        common: options of all optimizers.
    """
    each = makers(**common)
    rows = plan(model, each, machine=machine).rows
    steps = {name: make(model).step for name, make in each.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-1, repeats):  # the first is not counted
        for name, step in steps.items():
            seconds = _seconds(step)
            taken[name] += [seconds] * (repeat >= 0)
        told()
    lines = []
    for row in rows:
        seconds = statistics.median(taken[row.optimizer])
        lines.append(
            {
                "optimizer": row.optimizer,
                "planned_ms": row.seconds * 1e3,
                "measured_ms": seconds * 1e3,
                "planned_of_measured": row.seconds / seconds,
                "phases_ms": {phase: value * 1e3 for phase, value in row.phases.items()},
            }
        )
    return lines


def _seconds(step: Callable[[], object]) -> float:
    several = dist.is_initialized() and dist.get_backend() != "fake"
    if several:
        dist.barrier()
    start = time.perf_counter()
    step()
    if several:
        dist.barrier()
    return time.perf_counter() - start


def module_of(params: Sequence[nn.Parameter]) -> nn.Module:
    """Return a module that has parameters and nothing else."""
    model = nn.Module()
    for i, param in enumerate(params):
        model.register_parameter(f"w{i}", param)
    return model


def on_this_rank(case: Case, layout: str, repeats: int) -> tuple[Machine, list[dict[str, Any]]]:
    """Measure this machine together with the other ranks, and compare, in a worker."""
    machine = measure("cpu")
    world = dist.get_world_size()
    params = []
    for shape in case.shapes:
        full: Tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        params.append(nn.Parameter(layouts.build(layout, world, full)))
        params[-1].grad = layouts.build(layout, world, full * 0.1)
    replicas = layouts.replica_group(layout, world)
    return machine, compared(module_of(params), machine, repeats=repeats, told=lambda: None, replicas=replicas)


def main(arguments: Sequence[str] | None = None) -> Results:
    """Compare, print, and keep the results; with --docs also as a table in a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of one process (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="of each step (default: 5)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--docs", type=Path, help="a page in which to replace the table")
    parser.add_argument("--out", type=Path, help="folder for the results (default: benchmarks/results)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device("cpu")
    results = Results(
        "planned", folder=folder_for_results(given.out), arguments=vars(given) | {"docs": "", "out": ""}, device=device
    )
    tiny = Case("tiny", ((64, 48), (48, 64)))
    from benchmarks import planned as here  # under the name by which workers can import it

    with Progress() as bar:
        cases = (GPT2_SMALL, LLAMA_8B_LAYER.shard(64))
        task = bar.add_task("", total=1 + len(cases) * (given.repeats + 1) + len(LAYOUTS))

        def told() -> None:
            bar.advance(task)

        bar.update(task, description="this machine")
        machine = measure(device, quick=given.small)
        told()
        for case in cases:
            case = replace(tiny, name=case.name, ranks=case.ranks) if given.small else case
            bar.update(task, description=case.name)
            if case.ranks == 1:
                params = parameters(case, dtype=torch.float32, device=device)
                lines = compared(module_of(params), machine, repeats=given.repeats, told=told)
            else:
                nothing = Link(bandwidth=1e18, latency=1e-12)  # nothing is sent
                alone = replace(machine, within_node=nothing, between_nodes=nothing)
                with fake_ranks(case.ranks):
                    params = parameters(case, dtype=torch.float32, device=device)
                    lines = compared(module_of(params), alone, repeats=given.repeats, told=told)
            for line in lines:
                results.note("planned", case=case.name, ranks=1, **line)
        with Pool() as pool:
            for name, layout in LAYOUTS.items():
                case = replace(tiny, name=FOUR_LAYERS.name) if given.small else FOUR_LAYERS
                bar.update(task, description=f"{case.name}, {name} on 2 ranks")
                _, lines = pool.run(2, here.on_this_rank, case, layout, given.repeats, timeout=_TIMEOUT)[0]
                told()
                for line in lines:
                    results.note("planned", case=f"{case.name}, {name}", ranks=2, **line)
    results.save()
    print_lines(console(), "planned and measured", [_shown(line) for line in results.tables["planned"]])
    if given.docs is not None:
        write_table(given.docs, results)
    return results


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "phases_ms"}


def write_table(page: Path, results: Results) -> None:
    """Put the table between the two marks of a page."""
    lines = [
        "| case | ranks | optimizer | planned | measured | planned / measured |",
        "| --- | --: | --- | --: | --: | --: |",
    ]
    for line in results.tables["planned"]:
        milliseconds = [
            f"{line[key]:,.3g} ms" if line[key] < 100 else f"{line[key]:,.0f} ms"
            for key in ("planned_ms", "measured_ms")
        ]
        lines.append(
            "| "
            + " | ".join(
                [
                    line["case"],
                    str(line["ranks"]),
                    line["optimizer"],
                    *milliseconds,
                    f"{line['planned_of_measured']:.2f}",
                ]
            )
            + " |"
        )
    text = page.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    page.write_text("\n".join([text[:before], *lines, text[after:]]))


if __name__ == "__main__":
    main()
