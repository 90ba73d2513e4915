"""QK-clip: record the largest attention logits of a step, and clip the query and key weights by them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM

from orthon.model.qk_clip import qk_clip_
from orthon.train.processes.ranks import TENSOR, Processes

NAME = "orthon_sdpa_max_logits"  # of our attention function in transformers

CHUNK = 1 << 25  # number of logits in memory at once; at least one row


def record_logits(model: LlamaForCausalLM) -> None:
    """Make each attention layer keep the largest logit of each head, over its forward passes with gradients.

    Validation and sampling do not count, as they have no gradients. Passes that activation checkpointing repeats make
    no difference. The outputs are those of "sdpa". The logits cost one more product of queries and keys.
    """
    sdpa, sdpa_mask = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
        if torch.is_grad_enabled():
            assert mask is None, "training sequences have no padding, and sdpa then needs no mask but the causal one"
            found = max_logits(query, key, more["scaling"])
            before = getattr(module, "max_logits", None)
            module.max_logits = found if before is None else torch.maximum(before, found)
        return sdpa(module, query, key, value, mask, **more)

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


@torch.no_grad()
def max_logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return the largest causal logit of each query head, float32 (heads,), in the precision of the model's products.

    Args:
        query: after rotary embeddings, (b, heads, length, d).
        key: the same, (b, kv_heads, length, d); query head h uses key head h // (heads / kv_heads).
        scaling: factor of the products, 1/√d; above 0.
    """
    b, heads, length, d = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    query = query.reshape(b, kv_heads, group, length, d)
    found = query.new_full((heads,), -torch.inf, dtype=torch.float32)
    size = max(1, CHUNK // (b * heads * length))
    for start in range(0, length, size):
        stop = min(start + size, length)
        rows = query[..., start:stop, :].flatten(2, 3)
        products = rows @ key[:, :, :stop].mT  # these queries do not see later keys
        products = products.view(b, kv_heads, group, stop - start, stop)
        hidden = torch.ones(stop - start, stop - start, dtype=torch.bool, device=query.device).triu(1)
        products[..., start:].masked_fill_(hidden, -torch.inf)
        found = torch.maximum(found, products.amax((0, 3, 4)).flatten().float())
    return found * scaling


def clip_logits(model: LlamaForCausalLM, threshold: float, ranks: Processes) -> Tensor:
    """Clip the query and key weights of all layers, by the largest logits since the last call.

    All ranks call it together, after the optimizer's step.

    Args:
        model: prepared by `record_logits`. Changed in place.
        threshold: the largest logit to allow.
        ranks: who takes part.

    Returns:
        The largest logit of all heads and layers before the clip, 0-dimensional, on the device.
    """
    layers = [layer.self_attn for layer in model.model.layers]
    mine = torch.stack([attention.max_logits for attention in layers])  # (layers, heads of this rank)
    for attention in layers:
        del attention.max_logits
    heads = mine.shape[1]
    first = ranks.place(TENSOR) * heads
    found = mine.new_full((len(layers), ranks.size(TENSOR) * heads), -torch.inf)
    found[:, first : first + heads] = mine
    ranks.max_(found)  # over the other sequences, and the ranks that have the other heads
    for attention, largest in zip(layers, found, strict=True):
        query, key = attention.q_proj, attention.k_proj
        qk_clip_(query.weight, key.weight, largest, threshold=threshold, query_bias=query.bias, key_bias=key.bias)
    return found.max()
