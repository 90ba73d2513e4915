"""The matrices of LLaMA-3 models, of which those of the benchmarks' table are one layer."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.cases import LLAMA_8B_LAYER, LLAMA_405B_LAYER, Case


@dataclass(frozen=True)
class Layers:
    """Layers that are all alike.

    Attributes:
        shapes: inputs and outputs of the matrices in a layer, by name.
        count: how many layers there are.
    """

    shapes: Mapping[str, tuple[int, int]]
    count: int


def _layers(layer: Case, count: int) -> Layers:
    names = ("q", "o", "k", "v", "gate", "up", "down")
    return Layers({name: (n, m) for name, (m, n) in zip(names, layer.shapes, strict=True)}, count)


LLAMA = {"8B": _layers(LLAMA_8B_LAYER, 32), "405B": _layers(LLAMA_405B_LAYER, 126)}
