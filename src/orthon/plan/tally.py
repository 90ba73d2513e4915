"""Sums of what operations cost."""

from dataclasses import dataclass, field

from orthon.machines import Machine
from orthon.plan.operations import Operation


@dataclass
class Tally:
    """What some operations cost together.

    Attributes:
        flops: of matrix products, by the rate of a `Machine` at which they run.
        factoring: operations of factorizations and of triangular solves.
        bytes: of memory that is read and written.
        launches: of kernels. A machine's host takes `launch` for each.
        seconds: for which the device works on them, on the machine of the recorder; 0 where it has none.
    """

    flops: dict[str, float] = field(default_factory=dict)
    factoring: float = 0.0
    bytes: int = 0
    launches: int = 0
    seconds: float = 0.0

    def note(self, operation: Operation, machine: Machine | None = None) -> None:
        """Add one operation."""
        if operation.flops:
            self.flops[operation.rate] = self.flops.get(operation.rate, 0.0) + operation.flops
        self.factoring += operation.factoring
        self.bytes += operation.bytes
        self.launches += operation.launches
        if machine is not None:
            self.seconds += operation.seconds(machine)

    def add(self, other: "Tally") -> None:
        """Add what other operations cost."""
        for rate, flops in other.flops.items():
            self.flops[rate] = self.flops.get(rate, 0.0) + flops
        self.factoring += other.factoring
        self.bytes += other.bytes
        self.launches += other.launches
        self.seconds += other.seconds
