"""The table of layouts in docs/how_to/many_ranks.md: what a step sends on each, counted, and which tests hold it.

Run: python -m scripts.layout_table, which writes it into the page. tests/test_layout_page.py makes it again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import orthon
from orthon.sharding import local
from orthon.train.model.cluster import on_cluster
from orthon.train.model.on_meta import model_on_meta
from orthon.train.settings.cluster import ClusterConfig
from orthon.train.settings.model import ModelConfig

PAGE = Path(__file__).parents[1] / "docs" / "how_to" / "many_ranks.md"
START, END = "<!-- layouts: begin -->\n", "<!-- layouts: end -->"
SIZE = "1B"
OPTIMIZERS: dict[str, tuple[type[orthon.MixedOptimizer], dict[str, Any]]] = {
    "Dion 1/4": (orthon.Dion, {}),
    "Dion 1/16": (orthon.Dion, {"rank_fraction": 1 / 16}),
    "Muon": (orthon.Muon, {}),
    "Dion2 1/4": (orthon.Dion2, {}),
}


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        name: of the layout, for people.
        sizes: of the mesh: dp_replicate, dp_shard and tp.
        tests: names in `orthon.testing.layouts.LAYOUTS`, which the tests compare with one process.
        compressed: whether the optimizer averages over dp_replicate, and nothing else does.
    """

    name: str
    sizes: tuple[int, int, int]
    tests: tuple[str, ...]
    compressed: bool = False


LINES = (
    Line("DDP", (8, 1, 1), ("ddp", "replicated")),
    Line("FSDP2", (1, 8, 1), ("fsdp 0", "fsdp 1")),
    Line("HSDP, 2 × 4", (2, 4, 1), ("hsdp", "hsdp 4x2", "rows x replicas", "transposed hsdp")),
    Line("tensor parallelism", (1, 1, 8), ("tp column", "tp row")),
    Line(
        "FSDP2 × tensor parallelism, 4 × 2",
        (1, 4, 2),
        (
            "fsdp x tp same dim",
            "fsdp x tp same dim 4x2",
            "fsdp x tp same dim 1",
            "fsdp x tp other dim",
            "fsdp x tp other dim 4x2",
            "columns x rows",
            "rows of rows",
            "transposed mesh",
        ),
    ),
    Line(
        "HSDP × tensor parallelism, 2 × 2 × 2",
        (2, 2, 2),
        ("hsdp x tp same dim", "hsdp x tp other dim", "rows of rows x columns"),
    ),
    Line("compressed: DDP left out", (8, 1, 1), ("ddp compressed",), compressed=True),
    Line(
        "compressed: HSDP, 2 × 4, replicate axis left out",
        (2, 4, 1),
        ("hsdp compressed", "hsdp 4x2 compressed", "hsdp x tp compressed"),
        compressed=True,
    ),
)
OTHERS = (
    Line("a mesh with an axis of size 1", (1, 1, 1), ("axis of size 1", "last axis of size 1")),
    Line("every rank computes all of it, alone", (1, 1, 1), ("unaware",)),
)


def table() -> str:
    """Return the table as Markdown."""
    head = ["layout of 8 GPUs", *OPTIMIZERS, "averaging gradients, beside it"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' --: |' * (len(OPTIMIZERS) + 1)}"]
    lines += [f"| {line.name} | {' | '.join([*_cells(line), _gradients(line)])} |" for line in LINES]
    return "\n".join(lines) + "\n"


def held_by() -> str:
    """Return the second table, of the layouts in the tests that hold each line."""
    lines = ["| layout | in the tests |", "| --- | --- |"]
    lines += [f"| {line.name} | {', '.join(f'`{name}`' for name in line.tests)} |" for line in (*LINES, *OTHERS)]
    return "\n".join(lines) + "\n"


def _gradients(line: Line) -> str:
    """Return what a sum of all gradients over the replicas sends: twice what a rank holds, but for its own part."""
    replicas = line.sizes[0]
    if line.compressed:
        return "0"
    if replicas == 1:
        return "by `fully_shard`" if line.sizes[1] > 1 else "none"
    model = _model()
    with on_cluster(model, line.sizes):
        held = sum(local(param).nbytes for param in model.parameters())
    return f"{2 * (1 - 1 / replicas) * held / 1e6:,.0f} MB"


def _model() -> nn.Module:
    return model_on_meta(ClusterConfig(model=ModelConfig.model_validate({"size": SIZE})))


def _cells(line: Line) -> Iterator[str]:
    for name, (make, given) in OPTIMIZERS.items():
        options = dict(given)
        if line.compressed and name == "Muon":
            yield "whole gradients"
            continue
        model = _model()
        with on_cluster(model, line.sizes) as processes:
            if line.sizes[1:] == (1, 1):
                options["replicas"] = "world"
            if line.compressed:
                replicas = processes.mesh["dp_replicate"] if line.sizes[1] > 1 else "world"
                options |= {"replicas": replicas, "sync_gradients": True}
                options |= orthon.Dion.PAPER if make is orthon.Dion else {"selection": "random"}
            found = orthon.explain(make.for_model(model, machine="h100", **options))
        share, waves = found.most_bytes, found.waves
        assert share is not None
        routes = {batch.route for wave in waves for batch in wave.batches if batch.matrices and batch.route}
        route = f", {' and '.join(sorted(routes))}" if make is orthon.Dion else ""
        yield f"{share.sent / 1e6:,.0f} MB{route}"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}{table()}\n{held_by()}{END}{after}", encoding="utf-8")
