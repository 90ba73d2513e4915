"""A stand-in for the planner: rows whose figures are simple functions of what is asked for."""

from collections.abc import Callable, Mapping
from types import ModuleType

import torch.distributed as dist
from torch import nn

from orthon.machines import Machine
from orthon.optimizers.mixed import MixedOptimizer
from orthon.plan.rows import Plan, PlanRow


def row(optimizer: str, seconds: float, *, fits: bool, peak_bytes: int) -> PlanRow:
    return PlanRow(
        optimizer=optimizer,
        seconds=seconds,
        mean_seconds=1e-3,
        busiest=0,
        working=seconds,
        exposed=2e-3,
        hidden=0.0,
        flops={"bfloat16": 5e12 - 1e9},
        factoring=1e9,
        traffic=3e9,
        operations=100,
        phases={},
        collectives=4,
        wire={"within node": 0.0, "between nodes": 7e8},
        state_bytes=10**9,
        temporary_bytes=10**8,
        peak_bytes=peak_bytes,
        fits=fits,
    )


def stand_in(least_ranks: int = 1) -> ModuleType:
    """Return a module with a function `plan`.

    Muon's time falls as ranks grow, that of all others stays: they meet at 48 ranks. Dion's grows with its rank.

    Args:
        least_ranks: on fewer than these nothing fits.
    """

    def plan(
        model: nn.Module,
        optimizers: Mapping[str, Callable[[nn.Module], MixedOptimizer]],
        *,
        machine: Machine,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Plan:
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        rows = []
        for done, (word, make) in enumerate(optimizers.items()):
            assert progress is not None
            progress(done, len(optimizers), word)
            optimizer = make(model)
            assert isinstance(optimizer, MixedOptimizer)
            fraction = next((g["rank_fraction"] for g in optimizer.param_groups if "rank_fraction" in g), 0.25)
            seconds = 0.48 / ranks if word == "muon" else 0.04 * fraction
            fits = ranks >= least_ranks
            rows.append(row(word, seconds, fits=fits, peak_bytes=int(machine.memory * (0.5 if fits else 2))))
        return Plan(machine, ranks, tuple(rows))

    module = ModuleType("orthon.plan.planning")
    module.plan = plan  # type: ignore[attr-defined]
    return module
