"""The models of published runs, as far as an optimizer sees them: matrices without storage."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Dense:
    """The shapes of a decoder whose layers are alike.

    Attributes:
        width: of the hidden state.
        layers: how many.
        keys: outputs of the key projection, and of the value projection.
        inner: width inside the feed-forward blocks.
        gated: whether these have a third matrix, for the gate.
        gates: outputs of a matrix that gates attention heads; 0 for none.
        vocabulary: different tokens.
        tied: whether the output head is the embedding.
    """

    width: int
    layers: int
    keys: int
    inner: int
    gated: bool = True
    gates: int = 0
    vocabulary: int = 100_352
    tied: bool = False

    def build(self, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        """Return the parameters, on meta, in modules that `for_model` knows."""
        width = self.width
        shapes = {"q": (width, width), "k": (self.keys, width), "v": (self.keys, width), "o": (width, width)}
        shapes |= {"up": (self.inner, width), "down": (width, self.inner)}
        if self.gated:
            shapes["gate"] = (self.inner, width)
        if self.gates:
            shapes["head_gate"] = (self.gates, width)
        model = nn.Module()
        with torch.device("meta"):
            model.embed = nn.Embedding(self.vocabulary, width, dtype=dtype)
            model.layers = nn.ModuleList(Matrices(shapes, dtype) for _ in range(self.layers))
            if not self.tied:
                model.lm_head = nn.Linear(width, self.vocabulary, bias=False, dtype=dtype)
        return model


class Matrices(nn.Module):
    """Linear layers of given shapes (out, in), and a norm of the width of the first one's input."""

    def __init__(self, shapes: dict[str, tuple[int, int]], dtype: torch.dtype) -> None:
        super().__init__()
        for name, (outputs, inputs) in shapes.items():
            self.add_module(name, nn.Linear(inputs, outputs, bias=False, dtype=dtype))
        self.norm = nn.RMSNorm(next(iter(shapes.values()))[1], dtype=dtype)


class Experts(nn.Module):
    """The experts of a layer, as Megatron-LM keeps them: gate and up are one matrix of each expert."""

    is_transposed = False  # (expert, out, in), as transformers' modules say it
    is_concatenated = False  # so that gate and up are orthonormalized together

    def __init__(self, count: int, width: int, inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = _weight(count, 2 * inner, width, dtype)
        self.down_proj = _weight(count, width, inner, dtype)


def mixture(
    shapes: dict[str, tuple[int, int]], *, layers: int, experts: int, width: int, inner: int, dtype: torch.dtype
) -> nn.Module:
    """Return layers of linear maps and experts, on meta.

    Args:
        shapes: of the linear maps of a layer, (out, in).
        layers: how many.
        experts: of a layer.
        width: of the hidden state.
        inner: width inside an expert.
        dtype: of all.
    """
    model = nn.Module()
    with torch.device("meta"):
        model.layers = nn.ModuleList(Matrices(shapes, dtype) for _ in range(layers))
        model.experts = nn.ModuleList(Experts(experts, width, inner, dtype) for _ in range(layers))
    return model


def _weight(count: int, outputs: int, inputs: int, dtype: torch.dtype) -> nn.Parameter:
    weight: Tensor = torch.empty(count, outputs, inputs, dtype=dtype)
    return nn.Parameter(weight)


# Dion3's Table 4 (arXiv 2608.11612). The gates are not in it. With them, the matrices have 11.490e9 numbers, which
# makes the 5,479 MiB that its Table 5 says a rank receives: both ways of one part in eight, in 16 bits.
DION3_14B = Dense(5120, 40, 1024, 14_592, gates=40)

# Its 1B model has 1.06e9 parameters if embedding and head are one.
DION3_1B = Dense(1536, 24, 768, 6656, gates=16, tied=True)

# The 7B model of its Table 6 is another one than in Table 4: "minor architectural differences", and MLPs of four times
# the width. Twelve squares a layer make the 6,442 MB that a rank receives.
DION3_7B = Dense(4096, 32, 4096, 16_384, gated=False)

# A pipeline stage of Kimi K2 (its published configuration): a quarter of 60 layers, whose attention has latents.
KIMI_K2 = {
    "q_a": (1536, 7168),
    "q_b": (12_288, 1536),
    "kv_a": (576, 7168),
    "kv_b": (16_384, 512),
    "o": (7168, 8192),
    "shared_up": (4096, 7168),
    "shared_down": (7168, 2048),
}

QWEN3_30B = {"q": (4096, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 4096)}
QWEN3_235B = {"q": (8192, 4096), "k": (512, 4096), "v": (512, 4096), "o": (4096, 8192)}
