"""The settings of the model: LLaMA shapes by size, in the proportions of LLaMA 3."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from orthon.train.settings.base import Count, Settings
from orthon.train.settings.numbers import whole

SizeName = Literal["1M", "4M", "20M", "120M", "350M", "1B", "3B", "8B", "70B", "405B"]

Layers = Annotated[int, BeforeValidator(whole), Field(ge=1, le=10_000)]


@dataclass(frozen=True)
class Shape:
    """The numbers that make a LLaMA."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int  # key and value heads; several query heads share one
    ffn: int  # inner width of the feed-forward blocks
    context: int  # tokens in one training sequence

    @property
    def matrix_weights(self) -> int:
        """Number of weights of the hidden matrices."""
        head = self.hidden_size // self.heads
        attention = 2 * self.hidden_size * head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.ffn)


# A name counts the weights of the hidden matrices alone. Embedding and output head come on top: each has
# vocabulary × hidden size.
SIZES: dict[SizeName, Shape] = {
    "1M": Shape(hidden_size=128, layers=4, heads=4, kv_heads=2, ffn=448, context=256),
    "4M": Shape(hidden_size=256, layers=4, heads=4, kv_heads=2, ffn=896, context=256),
    "20M": Shape(hidden_size=512, layers=6, heads=8, kv_heads=4, ffn=1792, context=512),
    "120M": Shape(hidden_size=768, layers=12, heads=12, kv_heads=12, ffn=3072, context=1024),
    "350M": Shape(hidden_size=1024, layers=24, heads=16, kv_heads=8, ffn=3584, context=1024),
    "1B": Shape(hidden_size=2048, layers=16, heads=32, kv_heads=8, ffn=8192, context=4096),
    "3B": Shape(hidden_size=3072, layers=28, heads=24, kv_heads=8, ffn=8192, context=4096),
    "8B": Shape(hidden_size=4096, layers=32, heads=32, kv_heads=8, ffn=14336, context=8192),
    "70B": Shape(hidden_size=8192, layers=80, heads=64, kv_heads=8, ffn=28672, context=8192),
    "405B": Shape(hidden_size=16384, layers=126, heads=128, kv_heads=8, ffn=53248, context=8192),
}


class ModelConfig(Settings):
    """The LLaMA to train: a named size, of which single numbers can be changed."""

    size: SizeName = "1M"
    """Named shape. The name counts the weights of the hidden matrices."""
    hidden_size: Count | None = None
    """Width of the residual stream."""
    layers: Layers | None = None
    """Number of layers."""
    heads: Count | None = None
    """Number of attention heads. It must divide the hidden size."""
    kv_heads: Count | None = None
    """Number of key and value heads. It must divide the number of attention heads."""
    ffn: Count | None = None
    """Inner width of the feed-forward blocks."""
    context: Count | None = None
    """Tokens in one training sequence."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        shape = self.shape
        if shape.hidden_size % (2 * shape.heads):
            raise ValueError(
                f"model.hidden_size must be an even multiple of model.heads ({shape.heads}) but is {shape.hidden_size}"
            )
        if shape.heads % shape.kv_heads:
            raise ValueError(f"model.kv_heads must divide model.heads ({shape.heads}) but is {shape.kv_heads}")
        return self

    @property
    def shape(self) -> Shape:
        """The numbers of the named size, with the given ones in place of its own."""
        given = self.model_dump(exclude={"size"}, exclude_none=True)
        return replace(SIZES[self.size], **given)

    @property
    def name(self) -> str:
        """What the model is called: its size, or the weights of its hidden matrices if they are not those of the size.

        The context is no part of the weights, and changes no name.
        """
        shape, named = self.shape, SIZES[self.size]
        if replace(shape, context=named.context) == named:
            return self.size
        millions = shape.matrix_weights / 1e6
        if millions >= 1000:
            return f"{millions / 1e3:.1f}B"
        if millions < 0.01:
            return f"{shape.matrix_weights / 1e3:.1f}K"
        return f"{millions:.0f}M" if millions >= 10 else f"{millions:.2f}M"
