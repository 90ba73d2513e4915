"""A stand-in for the planner: rows whose figures are simple functions of what is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch import nn

from orthon.machines import Machine
from orthon.optimizers.mixed import MixedOptimizer


@dataclass(frozen=True)
class Row:
    optimizer: str
    seconds: float
    fits: bool
    peak_bytes: int
    mean_seconds: float = 1e-3
    busiest: int = 0
    exposed: float = 2e-3
    hidden: float = 0.0
    work: float = 5e12
    factoring: float = 1e9
    traffic: float = 3e9
    wire: dict[str, float] = field(default_factory=lambda: {"within node": 0.0, "between nodes": 7e8})
    collectives: int = 4
    operations: int = 100
    state_bytes: int = 10**9
    temporary_bytes: int = 10**8


@dataclass(frozen=True)
class Made:
    rows: tuple[Row, ...]
    machine: Machine
    ranks: int

    def to_dict(self) -> dict[str, Any]:
        return {"machine": self.machine.name, "ranks": self.ranks, "optimizers": [asdict(row) for row in self.rows]}


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
    ) -> Made:
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
            rows.append(Row(word, seconds, fits, int(machine.memory * (0.5 if fits else 2))))
        return Made(tuple(rows), machine, ranks)

    module = ModuleType("orthon.plan.planning")
    module.plan = plan  # type: ignore[attr-defined]
    return module
