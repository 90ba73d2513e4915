"""What a plan tells of each optimizer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orthon.explain.aligned import table
from orthon.explain.units import duration, operations, size
from orthon.machines import Machine


@dataclass(frozen=True)
class PlanRow:
    """What a step of one optimizer takes. Bytes, operations and seconds of a rank are those of the busiest one.

    Attributes:
        optimizer: its name.
        seconds: until the last rank is done.
        mean_seconds: until a rank is done, on average.
        busiest: the global rank that works the longest.
        working: the seconds of its work.
        exposed: the seconds that it waits for others, as no work hides what is sent.
        hidden: the seconds of collectives that work hides.
        flops: floating-point operations of matrix products, by the rate of the machine at which they run.
        factoring: those of factorizations and triangular solves.
        traffic: bytes of memory that are read and written.
        operations: of torch that are launched.
        phases: seconds of work by what it is for.
        collectives: how many.
        wire: by link the most bytes that any rank sends, or receives if that is more.
        state_bytes: of a rank, the most.
        temporary_bytes: the most at one time beside weights, gradients and state.
        peak_bytes: of weights, gradients, state and temporaries.
        fits: whether the device has so much memory. Activations are not counted.
    """

    optimizer: str
    seconds: float
    mean_seconds: float
    busiest: int
    working: float
    exposed: float
    hidden: float
    flops: Mapping[str, float]
    factoring: float
    traffic: float
    operations: int
    phases: Mapping[str, float]
    collectives: int
    wire: Mapping[str, float]
    state_bytes: int
    temporary_bytes: int
    peak_bytes: int
    fits: bool

    @property
    def work(self) -> float:
        """All floating-point operations."""
        return sum(self.flops.values()) + self.factoring


@dataclass(frozen=True)
class Plan:
    """What a step of several optimizers takes.

    Attributes:
        machine: on which they run.
        ranks: how many ranks there are.
        rows: of the optimizers.
    """

    machine: Machine
    ranks: int
    rows: tuple[PlanRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values, in seconds, bytes and operations."""
        return {"machine": self.machine.name, "ranks": self.ranks, "optimizers": [asdict(row) for row in self.rows]}

    def table(self, *, rest: float | None = None) -> str:
        """Return the plan as a table. Times are those of the slowest rank, everything else that of the busiest one.

        Args:
            rest: the seconds of a training step without the optimizer, for its share; None if they are not known.
        """
        header = ["optimizer", "time of\na step", "not\nhidden", "work", "memory\ntraffic", "sent within\na node"]
        header += ["sent between\nnodes", "collectives", "state", "peak\nmemory", "fits"]
        lines = [_cells(row) for row in self.rows]
        if rest is not None:
            header.insert(2, "of a\nwhole step")
            for line, row in zip(lines, self.rows, strict=True):
                line.insert(2, f"{row.seconds / (rest + row.seconds):.2%}")
        right = set(range(1, len(header)))
        return "\n".join(table(tuple(header), list(map(tuple, lines)), right=right))

    def __str__(self) -> str:
        return self.table()


def _cells(row: PlanRow) -> list[str]:
    return [
        row.optimizer,
        duration(row.seconds),
        duration(row.exposed) or "none",
        operations(row.work) or "none",
        size(row.traffic),
        size(row.wire.get("within node", 0.0)),
        size(row.wire.get("between nodes", 0.0)),
        str(row.collectives),
        size(row.state_bytes),
        size(row.peak_bytes),
        "yes" if row.fits else "no",
    ]
