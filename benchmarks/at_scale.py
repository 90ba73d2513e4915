"""Dion at scale: plans of a step for models from 120M to 405B on 8 to 4,096 GPUs, and the page that shows them.

Run: python -m benchmarks.at_scale [--page]

It writes benchmarks/results/at_scale.json, docs/dion_at_scale.md and its pictures. With --page it makes these of the
file that is there.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.at_scale_page import write_page
from orthon import Dion, MixedOptimizer, param_groups
from orthon.machines import MACHINES
from orthon.plan.planning import plan
from orthon.train.commands.comparison import parse_optimizer
from orthon.train.model.cluster import on_cluster
from orthon.train.model.on_meta import model_on_meta, weights_of_a_token
from orthon.train.processes.ranks import Processes
from orthon.train.results.plan_progress import PlanProgress
from orthon.train.settings.cluster import ClusterConfig
from orthon.train.settings.model import ModelConfig
from orthon.train.step.optimizers import build_mixed, settle

SIZES = ("120M", "1B", "8B", "70B", "405B")
RANKS = (8, 64, 512, 4096)
OPTIMIZERS = ("adamw:fused", "adamw", "muon", "dion:1", "dion:1/4", "dion:1/16", "dion:1/64", "dion2:1/4")
MACHINE = "h100"

# Of a training step.
TOKENS = 8192  # of each GPU
RATE = 400e12  # operations in a second that each GPU reaches, as LLaMA 3 405B did (arXiv 2407.21783, table 4)

RESULTS = Path(__file__).parent / "results" / "at_scale.json"


def cell(size: str, ranks: int, words: Sequence[str] = OPTIMIZERS) -> dict[str, Any]:
    """Return a plan for one model on one number of GPUs, divided by fully_shard alone, as plain values."""
    start = time.perf_counter()
    sizes = (1, ranks, 1)
    model = model_on_meta(ClusterConfig(model=ModelConfig.model_validate({"size": size})))
    weights = weights_of_a_token(model)
    with on_cluster(model, sizes) as processes:
        optimizers = {word: partial(_build, word=word, ranks=processes) for word in words}
        made = plan(model, optimizers, machine=MACHINE)
    rows = made.to_dict()["optimizers"]
    return {
        "size": size,
        "ranks": ranks,
        "weights": weights,
        "training_seconds": 6 * weights * TOKENS / RATE,
        "planned_in_seconds": time.perf_counter() - start,
        "optimizers": {row.pop("optimizer"): row for row in rows},
    }


def _build(model: nn.Module, *, word: str, ranks: Processes) -> MixedOptimizer:
    """Return the optimizer that a word of `orthon plan` means; "adamw:fused" is AdamW as one kernel."""
    if word == "adamw:fused":
        groups = param_groups(model, "adamw", "adamw")
        for group in groups:
            group["fused"] = True
        return Dion(groups)
    return build_mixed(model, settle(parse_optimizer(word, {})), 0, ranks)


def plan_all(console: Console, processes: int) -> dict[str, Any]:
    """Return the plans for all models and numbers of GPUs."""
    # Those that take longest first.
    pairs = sorted(product(SIZES, RANKS), key=lambda pair: -pair[1] * SIZES.index(pair[0]))
    cells = {}
    with (
        PlanProgress(console, len(pairs)) as progress,
        ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool,
    ):
        futures = {pool.submit(cell, *pair): pair for pair in pairs}
        for future in as_completed(futures):
            cells[futures[future]] = future.result()
            size, ranks = futures[future]
            progress.part(f"{size} on {ranks:,} GPUs")
            progress.end_part()
    return {
        "machine": MACHINE,
        "machine_memory": MACHINES[MACHINE].memory,
        "tokens_of_a_gpu": TOKENS,
        "training_rate": RATE,
        "torch": torch.__version__,
        "cells": [cells[pair] for pair in product(SIZES, RANKS)],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, and write the file, the page and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="make the page anew of the results that are there")
    parser.add_argument("--processes", type=int, default=2, help="processes that plan (default: 2)")
    given = parser.parse_args(arguments)
    if not given.page:
        results = plan_all(Console(stderr=True), given.processes)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
