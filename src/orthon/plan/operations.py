"""What one operation of torch costs: its arithmetic, its traffic, its memory and its launches."""

from dataclasses import dataclass
from typing import Any

from orthon.machines import Machine
from orthon.plan.products import factoring_of, product_of
from orthon.plan.traffic import traffic_of

# New memory of fewer bytes than this is used again and again. A larger block goes back to the system when it is free,
# and comes from it again: glibc returns blocks of 32 MB, and smaller ones when many of them are free at its end.
LARGE_BLOCK = 16 << 20

# What does no work of its own on the device: collectives, whose time depends on others, and marks for profilers.
_ELSEWHERE = ("c10d", "_c10d_functional", "profiler")


@dataclass(frozen=True, slots=True)
class Operation:
    """What one operation of torch costs.

    Attributes:
        flops: of matrix products. A multiplication and an addition count as two.
        rate: of a `Machine`, at which these run: "float64", "float32", "tf32" or "bfloat16".
        factoring: operations of factorizations and of triangular solves.
        in_float64: whether these are made in float64.
        side: the smallest side of the matrices that are multiplied, or the size of those that are factored.
        bytes: of memory that is read and written, both counted.
        fresh: bytes of the memory that the result takes anew.
        launches: of kernels.
        reorders: whether numbers that lie side by side do so no longer in the result, as in a transposed copy.
    """

    flops: float = 0.0
    rate: str = "float32"
    factoring: float = 0.0
    in_float64: bool = False
    side: int = 0
    bytes: int = 0
    fresh: int = 0
    launches: int = 0
    reorders: bool = False

    def seconds(self, machine: Machine) -> float:
        """Return how long a device works on it.

        That is its arithmetic or its traffic, whichever takes longer, and what every kernel takes beside. New memory
        counts where the system gives it. How long the host takes to start it is not in it.
        """
        if not self.launches:
            return self._touching(machine)
        work = machine.reordering_seconds(self.bytes) if self.reorders else machine.traffic_seconds(self.bytes)
        if self.flops:
            work = max(work, machine.product_seconds(self.flops, self.rate, side=self.side))
        elif self.factoring:
            work = max(work, machine.small_factor_seconds(self.factoring, in_float64=self.in_float64, side=self.side))
        return work + self._touching(machine) + self.launches * machine.kernel

    def _touching(self, machine: Machine) -> float:
        return self.fresh * machine.first_touch if self.fresh >= LARGE_BLOCK else 0.0


NOTHING = Operation()


def counted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Operation:
    """Return what an operation costs, on any device, meta included.

    Args:
        func: the overload, such as torch.ops.aten.mm.default.
        args: its arguments.
        kwargs: its arguments by name.
        result: of it.
    """
    if func.namespace in _ELSEWHERE:
        return NOTHING
    packet = func.overloadpacket
    moved, fresh, launches, reorders = traffic_of(func, args, kwargs, result)
    if not launches and not fresh:
        return NOTHING
    product = product_of(packet, args)
    if product is not None:
        rate, (count, m, n, k) = product
        flops = 2.0 * count * m * n * k
        return Operation(flops, rate, side=min(m, n, k), bytes=moved, fresh=fresh, launches=launches)
    factoring = factoring_of(packet, args)
    if factoring is not None:
        flops, in_float64 = factoring
        side = min(args[0].shape[-2:])
        return Operation(0.0, "float32", flops, in_float64, side, moved, fresh, launches)
    return Operation(bytes=moved, fresh=fresh, launches=launches, reorders=reorders)
