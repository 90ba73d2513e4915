"""The heads of an attention module, as far as the module or its config tells."""

from typing import Any

from torch import nn


class Heads:
    """How many heads an attention module has, and of which size, as far as it tells.

    Attributes:
        queries: the number of query heads; 1 if it does not tell.
        keys: the number of key heads, and of value heads.
        size: of one head; None if it does not tell.
    """

    def __init__(self, module: nn.Module) -> None:
        config = getattr(module, "config", None)
        known = _first(module, "num_heads", "num_attention_heads", "n_heads", "n_head") or _first(
            config, "num_attention_heads"
        )
        self.queries: int = known or 1
        self.keys: int = (
            _first(module, "num_key_value_heads", "num_kv_heads", "kv_heads")
            or _first(config, "num_key_value_heads")
            or self.queries
        )
        size = _first(module, "head_dim", "head_size") or _first(config, "head_dim")
        width = _first(module, "hidden_size", "embed_dim", "n_embd") or _first(config, "hidden_size")
        if size is None and known and width and width % known == 0:
            size = width // known
        self.size: int | None = size if known else None

    @property
    def fused_rows(self) -> set[int]:
        """The numbers of rows that a weight of all heads can have: query, key and value, or key and value alone."""
        counts = (self.queries + 2 * self.keys, 3 * self.queries, 2 * self.keys)
        return {count * self.size for count in counts} if self.size else set()


def _first(owner: Any, *names: str) -> int | None:
    """Return the first of the attributes that is an integer >= 1."""
    for name in names:
        try:
            value = getattr(owner, name, None)
        except RuntimeError:  # raised by a config in which the layers differ
            continue
        if isinstance(value, int) and value >= 1:
            return value
    return None
