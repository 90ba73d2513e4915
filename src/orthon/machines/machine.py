"""The value `Machine`: how long a device works on something, and how long ranks send it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch

# The field with the rate of products in a dtype. "tf32" is float32 that is rounded to 11 bits before it is multiplied.
_RATES: dict[torch.dtype | Literal["tf32"], str] = {
    torch.float64: "float64",
    torch.float32: "float32",
    "tf32": "tf32",
    torch.bfloat16: "bfloat16",
    torch.float16: "bfloat16",
}

# Of a figure. With larger ones, or with smaller ones than its inverse, times would be no finite numbers.
LARGEST = 1e30


@dataclass(frozen=True)
class Link:
    """What connects ranks.

    Attributes:
        bandwidth: bytes per second that one rank sends, while it receives as many.
        latency: seconds that a collective takes, however little it sends.

    Raises:
        TypeError: if one of them is no number.
        ValueError: if one of them is not from 1e-30 to 1e30.
    """

    bandwidth: float
    latency: float

    def __post_init__(self) -> None:
        for name in ("bandwidth", "latency"):
            _check_positive("Link", name, getattr(self, name))


@dataclass(frozen=True)
class Machine:
    """How fast a device computes, and how fast its rank sends to others.

    Rates are what a step of an optimizer reaches, not the peaks of a data sheet. `MACHINES` has common ones.
    `dataclasses.replace` changes some of the figures.

    Attributes:
        name: for people to read.
        device: the kind of device, "cpu" or "cuda".
        float64: operations per second of large matrix products in float64. A multiplication and an addition count as
            two operations, here and everywhere.
        float32: likewise in full float32.
        tf32: likewise in TF32.
        bfloat16: likewise in bfloat16 or float16.
        product_side: products reach half of their rate if the smallest side of the matrices is so long.
        factorization: operations per second of Cholesky factorizations (r³/3 each) and of triangular solves (r² for
            each column or row that is solved), of large matrices in float32.
        factor_side: these reach half of their rate if r is so large.
        memory_bandwidth: bytes per second that are read and written.
        reordering: likewise, where a copy changes the order in which numbers lie, as that of a transposed matrix.
        first_touch: seconds for each byte of new memory that the system has to give; 0 where it is used again.
        launch: seconds that the host takes to start one operation of torch.
        kernel: seconds that the device takes for the smallest operation of torch. On a CPU, which is the host as well,
            all that is done between two operations is in it.
        memory: bytes that the device has.
        within_node: the link between ranks of one node.
        between_nodes: the link between ranks of different nodes.
        ranks_per_node: how many ranks a node has: the first so many ranks are on the first node.

    Raises:
        TypeError: if a figure is no number, `ranks_per_node` no integer, or a link no `Link`.
        ValueError: if a figure is not from 1e-30 to 1e30, where `first_touch` may be 0; if `device` is another; or if
            `name` has characters that cannot be printed.
    """

    name: str
    device: str
    float64: float
    float32: float
    tf32: float
    bfloat16: float
    product_side: float
    factorization: float
    factor_side: float
    memory_bandwidth: float
    reordering: float
    first_touch: float
    launch: float
    kernel: float
    memory: float
    within_node: Link
    between_nodes: Link
    ranks_per_node: int

    def __post_init__(self) -> None:
        _check("Machine", "name", self.name, str, "a string")
        if not self.name.isprintable():
            raise ValueError(f"Machine: name should have printable characters alone, but is {self.name!r}")
        _check("Machine", "device", self.device, str, "'cpu' or 'cuda'")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"Machine: device should be 'cpu' or 'cuda', but is {self.device!r}")
        for name in ("within_node", "between_nodes"):
            _check("Machine", name, getattr(self, name), Link, "an orthon.machines.Link")
        _check("Machine", "ranks_per_node", self.ranks_per_node, int, "an integer >= 1")
        for field in fields(self):
            if field.name not in ("name", "device", "within_node", "between_nodes"):
                _check_positive("Machine", field.name, getattr(self, field.name), or_zero=field.name == "first_touch")

    def seconds(self, flops: float, dtype: torch.dtype | Literal["tf32"]) -> float:
        """Return how long large matrix products of so many operations take."""
        assert dtype in _RATES, f"no rate for {dtype}"
        rate: float = getattr(self, _RATES[dtype])
        return flops / rate

    def product_seconds(self, flops: float, rate: str, *, side: float) -> float:
        """Return how long matrix products of so many operations take, large or small.

        Args:
            flops: of all together.
            rate: "float64", "float32", "tf32" or "bfloat16".
            side: the smallest side of the matrices.
        """
        of_large: float = getattr(self, rate)
        return flops / of_large * (1 + self.product_side / max(1, side))

    def small_factor_seconds(self, flops: float, *, in_float64: bool, side: float) -> float:
        """Return how long factorizations of so many operations take, of r × r matrices where r is `side`."""
        of_large = self.factor_seconds(flops, torch.float64 if in_float64 else torch.float32)
        return of_large * (1 + self.factor_side / max(1, side))

    def factor_seconds(self, flops: float, dtype: torch.dtype) -> float:
        """Return how long factorizations of so many operations take. In 16 bits they are made in float32."""
        slower = self.float32 / self.float64 if dtype == torch.float64 else 1.0
        return flops / self.factorization * slower

    def traffic_seconds(self, bytes: float) -> float:
        """Return how long the device takes to read and write so many bytes of its memory, both counted."""
        return bytes / self.memory_bandwidth

    def reordering_seconds(self, bytes: float) -> float:
        """Return how long copies take that change the order of numbers, of so many bytes, read and written."""
        return bytes / self.reordering

    def sending_seconds(
        self, bytes: float, ranks: Sequence[int], *, messages: int = 1, kind: str = "exchange"
    ) -> float:
        """Return how long collectives take.

        Args:
            bytes: that this rank sends in all of them, or receives if that is more.
            ranks: the global ranks that take part. One alone sends nothing.
            messages: how many collectives it is.
            kind: "sum", "gather" or "exchange". In an exchange every rank has numbers of its own. In the
                others numbers are sent between nodes once for all ranks of a node, each of which sends a part of them
                and hands it on within the node.
        """
        assert kind in ("sum", "gather", "exchange"), kind
        if len(ranks) == 1:
            return 0.0
        link = self.link(ranks)
        bandwidth = link.bandwidth
        if link is self.between_nodes and kind != "exchange":
            together = len(ranks) / len({rank // self.ranks_per_node for rank in ranks})
            bandwidth = max(bandwidth, min(together * bandwidth, self.within_node.bandwidth))
        return messages * link.latency + bytes / bandwidth

    def link(self, ranks: Sequence[int]) -> Link:
        """Return what connects global ranks, in any order: the link within a node if one node has them all."""
        first, last = min(ranks), max(ranks)
        return self.within_node if first // self.ranks_per_node == last // self.ranks_per_node else self.between_nodes


def _check(where: str, name: str, value: object, kind: type, allowed: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{where}: {name} should be {allowed}, but is {value!r}")


def _check_positive(where: str, name: str, value: object, *, or_zero: bool = False) -> None:
    allowed = ">= 0" if or_zero else "> 0"
    huge = isinstance(value, int) and value.bit_length() > 256  # which Python may refuse to write
    found = "a huge number" if huge else repr(value)
    message = f"{where}: {name} should be a finite number {allowed}, but is {found}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(message)
    if huge or not math.isfinite(value) or not (value > 0 or (or_zero and value == 0)):
        raise ValueError(message)
    if value > LARGEST or 0 < value < 1 / LARGEST:
        raise ValueError(f"{where}: {name} should be from {1 / LARGEST:g} to {LARGEST:g}, but is {found}")
