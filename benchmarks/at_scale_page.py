"""The page "Dion at scale" and its pictures, made of the plans in benchmarks/results/at_scale.json."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from orthon.explain.units import duration, operations, size
from orthon.train.results.plots import COLORS, STYLE

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "dion_at_scale.md"
TIMES, SHARES = DOCS / "dion-at-scale-times.png", DOCS / "dion-at-scale-shares.png"
TEMPLATE = Path(__file__).with_suffix(".md")

NAMES = {
    "adamw:fused": "AdamW, fused",
    "adamw": "AdamW",
    "muon": "Muon",
    "dion:1": "Dion 1",
    "dion:1/4": "Dion 1/4",
    "dion:1/16": "Dion 1/16",
    "dion:1/64": "Dion 1/64",
    "dion2:1/4": "Dion2 1/4",
}

Cell = Mapping[str, Any]


def write_page(results: Mapping[str, Any]) -> None:
    """Write the page and its pictures."""
    cells = results["cells"]
    _draw(TIMES, "time of an optimizer step (ms)", cells, lambda _, row: 1e3 * row["seconds"])
    _draw(SHARES, "part of a training step (%)", cells, lambda cell, row: 100 * share(cell, row))
    PAGE.write_text(text_of(results), encoding="utf-8")


def text_of(results: Mapping[str, Any]) -> str:
    """Return the page: the template with tables and the figures of the sentences in it."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(tables(results) | figures(results))


def share(cell: Cell, row: Mapping[str, Any]) -> float:
    """Return the part of a training step that its optimizer takes."""
    return float(row["seconds"] / (row["seconds"] + cell["training_seconds"]))


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables: a line for each model and number of GPUs, a column for each optimizer."""
    cells = results["cells"]
    return {
        "times": _table(cells, lambda _, row: duration(row["seconds"])),
        "shares": _table(cells, lambda cell, row: percent(share(cell, row))),
        "bytes": _table(cells, lambda _, row: size(sum(row["wire"].values()))),
        "work": _table(cells, lambda _, row: operations(_work(row)) or "none"),
        "exposed": _table(cells, lambda _, row: duration(row["exposed"]) or "none"),
        "state": _table(cells, lambda _, row: size(row["state_bytes"])),
        "collectives": _table(cells, lambda _, row: str(row["collectives"])),
        "operations": _table(cells, lambda _, row: f"{row['operations']:,}"),
        "training": _training(cells),
    }


def percent(part: float) -> str:
    """Return a part, such as "0.41 %"."""
    return f"{100 * part:.2g} %" if part < 0.0995 else f"{100 * part:.0f} %"


def _work(row: Mapping[str, Any]) -> float:
    return float(sum(row["flops"].values()) + row["factoring"])


def _table(cells: Sequence[Cell], shown: Callable[[Cell, Mapping[str, Any]], str]) -> str:
    lines = [f"| model | GPUs | {' | '.join(NAMES.values())} |", "| --- | --: |" + " --: |" * len(NAMES)]
    for cell in cells:
        values = [
            shown(cell, row) if row["fits"] else f"({shown(cell, row)})"
            for row in (cell["optimizers"][word] for word in NAMES)
        ]
        lines.append(f"| {cell['size']} | {cell['ranks']:,} | {' | '.join(values)} |")
    return "\n".join(lines)


def _training(cells: Sequence[Cell]) -> str:
    lines = ["| model | weights | rest of a training step |", "| --- | --: | --: |"]
    for cell in {cell["size"]: cell for cell in cells}.values():
        lines.append(
            f"| {cell['size']} | {cell['weights'] / 1e9:,.3g} billion | {duration(cell['training_seconds'])} |"
        )
    return "\n".join(lines)


def figures(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of the sentences, by names such as t_405B_64_muon."""
    cells = results["cells"]
    numbers = len({cell["ranks"] for cell in cells})
    found = {
        "tokens": f"{results['tokens_of_a_gpu']:,}",
        "all_tokens": f"{max(cell['ranks'] for cell in cells) * results['tokens_of_a_gpu'] / 1e6:.0f}",
        "rate": f"{results['training_rate'] / 1e12:.0f}",
        "memory": size(results["machine_memory"]),
        "slower": _slower(cells),
        "more_bytes": _list(_places(cells, _DIONS[-1], "muon", lambda row: sum(row["wire"].values())), numbers),
    }
    for cell in cells:
        place = f"{cell['size']}_{cell['ranks']}"
        for word, row in cell["optimizers"].items():
            name = f"{place}_{_plain(word)}"
            found |= {
                f"t_{name}": duration(row["seconds"]),
                f"s_{name}": percent(share(cell, row)),
                f"e_{name}": duration(row["exposed"]),
                f"m_{name}": size(row["state_bytes"]),
                f"b_{name}": size(sum(row["wire"].values())),
                f"o_{name}": f"{row['operations']:,}",
            }
            for other, beside in cell["optimizers"].items():
                found[f"r_{name}_{_plain(other)}"] = f"{row['seconds'] / beside['seconds']:.2g}"
    return found


def _plain(word: str) -> str:
    return word.replace(":", "_").replace("/", "_")


_DIONS = ("dion:1", "dion:1/4", "dion:1/16", "dion:1/64")

# Of two times or numbers of bytes, as a part of them.
NEARLY = 0.02


def _places(
    cells: Sequence[Cell], first: str, second: str, value: Callable[[Mapping[str, Any]], float]
) -> dict[str, list[int]]:
    """Return for each model the numbers of GPUs on which the value of the first is larger, of those where both fit."""
    found: dict[str, list[int]] = {}
    for cell in cells:
        one, other = cell["optimizers"][first], cell["optimizers"][second]
        ranks = found.setdefault(cell["size"], [])
        if one["fits"] and other["fits"] and value(one) > (1 + NEARLY) * value(other):
            ranks.append(cell["ranks"])
    return found


def _list(places: Mapping[str, Sequence[int]], numbers: int) -> str:
    parts = [
        f"{model} on {'all' if len(ranks) == numbers else ', '.join(f'{count:,}' for count in ranks)}"
        for model, ranks in places.items()
        if ranks
    ]
    return "; ".join(parts) or "none"


def _slower(cells: Sequence[Cell]) -> str:
    """Return a table of where each rank of Dion takes longer than the others."""
    numbers = len({cell["ranks"] for cell in cells})
    others = ("adamw:fused", "muon", "dion2:1/4")
    lines = [f"| | {' | '.join(f'than {NAMES[other]}' for other in others)} |", "| --- |" + " --- |" * len(others)]
    for word in _DIONS:
        shown = []
        for other in others:
            both = sum(all(cell["optimizers"][each]["fits"] for each in (word, other)) for cell in cells)
            places = _places(cells, word, other, lambda row: row["seconds"])
            everywhere = sum(map(len, places.values())) == both
            shown.append("everywhere" if everywhere else _list(places, numbers))
        lines.append(f"| {NAMES[word]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _draw(path: Path, what: str, cells: Sequence[Cell], value: Callable[[Cell, Mapping[str, Any]], float]) -> None:
    """Draw a panel for each model, and in it a line for each optimizer over the number of GPUs."""
    sizes = list(dict.fromkeys(cell["size"] for cell in cells))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 7.4), dpi=120, layout="constrained")
        panels = figure.subplots(2, -(-(len(sizes) + 1) // 2)).flatten()
        for axes, model in zip(panels, sizes, strict=False):
            own = [cell for cell in cells if cell["size"] == model]
            for word, color in zip(NAMES, COLORS, strict=False):
                points = [(c["ranks"], value(c, c["optimizers"][word])) for c in own if c["optimizers"][word]["fits"]]
                if points:
                    axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=NAMES[word])
            axes.set(title=model, xlabel="GPUs")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlim(min(c["ranks"] for c in cells) / 1.3, max(c["ranks"] for c in cells) * 1.3)
            ranks = sorted({cell["ranks"] for cell in cells})
            axes.set_xticks(ranks, [f"{count:,}" for count in ranks])
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        handles, labels = panels[0].get_legend_handles_labels()
        for axes in panels[len(sizes) :]:
            axes.axis("off")
        panels[len(sizes)].legend(handles, labels, loc="center", fontsize=13)
        panels[0].set_ylabel(what)
        panels[len(panels) // 2].set_ylabel(what)
        figure.savefig(path)
