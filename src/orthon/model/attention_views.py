"""Attention modules: projections of query, key and value in one weight, and single heads.

The tables list classes of transformers, read off its version 5.23.
"""

from collections.abc import Iterator

from torch import nn

from orthon.model.attention_heads import Heads
from orthon.model.layers import Finding, Layer
from orthon.model.roles import Role, hidden
from orthon.model.stored import stored
from orthon.model.wrappers import class_names
from orthon.sharding.matrix_view import MatrixView

_FUSED_QKV = "query, key and value in one weight: a matrix each"
_INTERLEAVED_QKV = "query, key and value interleaved by heads: one matrix for all"
_HEADS = "attention heads: a matrix each"

# Weights that hold the projections of query, key and value: the name in the attention module → classes of the module.
# First the rows of all queries, then of all keys, then of all values, as many of each:
_THIRDS = {
    "Wqkv": {"ModernBertAttention", "MptAttention"},
    "c_attn": {"CausalSelfAttention"},  # of nanoGPT
    "att_proj": {"BarkSelfAttention"},
    "qkv": {
        *("BlipAttention", "Blip2Attention", "InstructBlipAttention", "InstructBlipVideoAttention", "MgpstrAttention"),
        *("Qwen2_5_VLVisionAttention", "Qwen3VLVisionAttention", "Qwen3VLMoeVisionAttention"),
        *("Qwen3_5VisionAttention", "Qwen3_5MoeVisionAttention", "Qwen3OmniMoeVisionAttention"),
        *("Glm4vVisionAttention", "Glm4vMoeVisionAttention", "GlmImageVisionAttention", "GlmOcrVisionAttention"),
        *("Ernie4_5_VLMoeVisionAttention", "Florence2VisionWindowAttention", "GotOcr2VisionAttention"),
        *("HieraMaskUnitAttention", "SamVisionAttention", "SamHQVisionAttention", "Sam2MultiScaleAttention"),
        *("SegGptAttention", "TimesformerSelfAttention", "VitDetAttention"),
    },
}
# The same, with heads·d rows for the queries, and kv_heads·d rows each for keys and values:
_GROUPED = {
    "qkv_proj": {"Phi3Attention", "Phi4MultimodalAttention"},
    "Wqkv": {"DbrxAttention"},
    "c_attn": {"GPTBigCodeAttention"},  # with multi_query
    "query_key_value": {"FalconAttention"},  # with multi_query in the old architecture
}
# The query, key and value rows of the first head (or group of heads), then those of the second head, and so on. A view
# has no blocks of scattered rows. Blocks of contiguous rows would be single heads, which is what `per_head` makes of
# them, or mixtures of all three. So the weight stays one matrix, which is right for any order of the rows.
_INTERLEAVED = {
    "query_key_value": {
        *("GPTNeoXAttention", "GPTNeoXJapaneseAttention", "BloomAttention", "FalconAttention", "PersimmonAttention"),
    },
    "c_attn": {"GPTBigCodeAttention"},
    "qkv_proj": {"MiniMaxLightningAttention"},
}
_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "Wo", "proj")


def multihead(module: nn.Module, *, per_head: bool) -> Iterator[Finding]:
    """Find the projections of torch's own attention module."""
    if not isinstance(module, nn.MultiheadAttention):
        return
    heads = module.num_heads if per_head else 1
    if (fused := stored(module, "in_proj_weight")) is not None:
        yield fused, hidden(_HEADS if heads > 1 else _FUSED_QKV, MatrixView(blocks=3 * heads))
    if heads == 1:
        return
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if (weight := stored(module, name)) is not None:  # kdim or vdim is given
            yield weight, hidden(_HEADS, MatrixView(blocks=heads))
    if (output := Layer.of(module, "out_proj")) is not None:
        yield output.weight, output.role(_HEADS, blocks=heads, side="columns")


def attention(module: nn.Module, *, per_head: bool) -> Iterator[Finding]:
    """Find the projections of transformers' attention modules, and of those with the same attributes."""
    if isinstance(module, nn.MultiheadAttention):
        return
    heads = Heads(module) if per_head else None
    fused = False
    for child, _ in module.named_children():
        layer = Layer.of(module, child)
        role = _fused(module, layer, child) if layer is not None else None
        if layer is None or role is None:
            continue
        fused = True
        if heads is not None and layer.rows in heads.fused_rows and heads.size is not None:
            role = layer.role(_HEADS, blocks=layer.rows // heads.size)  # the order of the rows does not matter
        yield layer.weight, role
    if heads is None or heads.size is None or not (fused or hasattr(module, "k_proj")):
        return
    for child, count in (("q_proj", heads.queries), ("k_proj", heads.keys), ("v_proj", heads.keys)):
        layer = Layer.of(module, child)
        if layer is not None and count > 1 and layer.rows == count * heads.size:
            yield layer.weight, layer.role(_HEADS, blocks=count)
    for child in _OUTPUTS:
        layer = Layer.of(module, child)
        if layer is not None and heads.queries > 1 and layer.columns == heads.queries * heads.size:
            yield layer.weight, layer.role(_HEADS, blocks=heads.queries, side="columns")


def _fused(module: nn.Module, layer: Layer, child: str) -> Role | None:
    """Return the role of a weight that holds query, key and value; None for another weight."""
    names = class_names(module)
    thirds = layer.rows == 3 * layer.columns or (child == "qkv" and layer.rows % 3 == 0)
    if names & _THIRDS.get(child, set()) and thirds:
        return layer.role(_FUSED_QKV, blocks=3)
    if child == "c_attn" and layer.transposed:  # GPT-2 and its like
        part = getattr(module, "split_size", 0)
        count = layer.rows // part if part and layer.rows % part == 0 else 1  # 2 in cross-attention: key and value
        return layer.role(_FUSED_QKV, blocks=count) if count > 1 else None
    if names & _GROUPED.get(child, set()) and not _interleaves(module):
        heads = Heads(module)
        sizes = tuple(count * (heads.size or 0) for count in (heads.queries, heads.keys, heads.keys))
        if sum(sizes) == layer.rows:
            return layer.role(_FUSED_QKV, blocks=3 if len(set(sizes)) == 1 else sizes)
    if names & _INTERLEAVED.get(child, set()) and _interleaves(module):
        return hidden(_INTERLEAVED_QKV)
    return None


def _interleaves(module: nn.Module) -> bool:
    """Return whether an attention module of the tables has query, key and value interleaved by heads."""
    if class_names(module) & {"FalconAttention", "GPTBigCodeAttention"}:
        return not getattr(module, "multi_query", False) or bool(getattr(module, "new_decoder_architecture", False))
    return not any(class_names(module) & classes for classes in _GROUPED.values())
